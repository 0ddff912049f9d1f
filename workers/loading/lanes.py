"""Decides while ranks join whether lanes are used, and at which exchanges a stage's ranks switch lanes."""

import logging

import torch

from outrider.kernels.gpu.dispatch import MOST_ROWS
from outrider.workers.config import EngineConfig
from outrider.workers.engine.execution.lane_rule import LaneRule
from outrider.workers.engine.execution.lanes import Lanes
from outrider.workers.parallel import groups
from outrider.workers.parallel.collectives.collectives import Collectives
from outrider.workers.parallel.collectives.group_collectives import GroupCollectives
from outrider.workers.parallel.collectives.overlap import AsyncExchanges, Overlap, overlap_of
from outrider.workers.parallel.collectives.turns import LaneTurns
from outrider.workers.parallel.mesh import Mesh, group_name
from outrider.workers.parallel.sharing import Sharing

log = logging.getLogger("outrider.links")


def load_lanes(config: EngineConfig, sharing: Sharing, rank: int, machine: str, device: torch.device) -> Lanes | None:
    """None if rounds use one lane. Collective: every rank of the replica must call it.

    The second lane's thread ends when the rank leaves (`groups.leave`).
    """
    mesh = Mesh.of(config)
    stage = sharing.shard.spread and _runs_asynchronously(sharing.stage)
    # One data group may add over peer memory, which is no exchange, while another, of more rows, adds over NCCL.
    alike = sharing.peers is None or sharing.shard.datas == 1
    tensor = alike and _runs_asynchronously(sharing.tensor)
    answers = groups.all_gather(AsyncExchanges(machine, tensor, stage))
    members = mesh.stage_group(rank)
    overlap = overlap_of(
        [answers[member] for member in members],
        config.tensor_parallel_size,
        enabled=config.enable_dbo,
        gpu=device.type == "cuda",
    )
    # Smaller rounds have no exchange that anything could overlap with (peer_dispatch.py).
    least_rows = max(config.dbo_token_threshold, 0 if sharing.dispatch_areas is None else MOST_ROWS + 1)
    if rank == members[0]:
        _log_overlap(config, overlap, group_name(members), sharing.carriers, least_rows)
    if not overlap.possible:
        return None
    turns = LaneTurns()
    groups.on_leave(turns.close)
    for group, hands_over in ((sharing.tensor, overlap.tensor), (sharing.stage, overlap.stage)):
        if hands_over and isinstance(group, GroupCollectives):
            group.on_launched = turns.hand_over
    return Lanes(LaneRule.of(overlap, least_rows), turns, config.data_parallel_size, device)


def _runs_asynchronously(group: Collectives) -> bool:
    """Whether the group's exchanges proceed while this rank computes.

    With shared memory, ranks copy the data themselves.
    """
    return group.size > 1 and isinstance(group, GroupCollectives)


def _log_overlap(config: EngineConfig, overlap: Overlap, where: str, carriers: str, least_rows: int) -> None:
    if overlap.possible:
        log.info("%s compute during exchanges, in rounds of at least %d rows", where, least_rows)
    elif config.enable_dbo:
        log.warning(
            "enable_dbo: %s have no asynchronous exchanges (%s): their rounds use one lane",
            where,
            f"transport: {carriers}" if carriers else "no exchanges",
        )
