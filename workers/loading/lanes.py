"""Settles, as ranks meet, whether and at which exchanges a stage's lanes hand over to one another."""

import logging

import torch

from outrider.workers.config import EngineConfig
from outrider.workers.engine.lane_rule import LaneRule
from outrider.workers.engine.lanes import Lanes
from outrider.workers.parallel import groups
from outrider.workers.parallel.collectives import Collectives
from outrider.workers.parallel.group_collectives import GroupCollectives
from outrider.workers.parallel.mesh import Mesh, group_name
from outrider.workers.parallel.overlap import Carried, Overlap, overlap_of
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.parallel.turns import LaneTurns

log = logging.getLogger("outrider.links")


def load_lanes(config: EngineConfig, sharing: Sharing, rank: int, machine: str, device: torch.device) -> Lanes | None:
    """None where rounds go as one lane. Every rank of the replica must call it, at the same place.

    A second lane's thread ends when the rank leaves.
    """
    mesh = Mesh.of(config)
    tensor, stage = _by_itself(sharing.tensor), sharing.shard.spread and _by_itself(sharing.stage)
    answers = groups.ask_all(Carried(machine, tensor, stage))
    members = mesh.stage_group(rank)
    overlap = overlap_of(
        [answers[member] for member in members],
        config.tensor_parallel_size,
        enabled=config.enable_dbo,
        gpu=device.type == "cuda",
    )
    if rank == members[0]:
        _say(config, overlap, group_name(members), sharing.carriers)
    if not overlap.possible:
        return None
    turns = LaneTurns()
    groups.on_leave(turns.close)
    for group, hands_over in ((sharing.tensor, overlap.tensor), (sharing.stage, overlap.stage)):
        if hands_over and isinstance(group, GroupCollectives):
            group.meanwhile = turns.hand_over
    return Lanes(LaneRule.of(overlap, config.dbo_token_threshold), turns, config.data_parallel_size, device)


def _by_itself(group: Collectives) -> bool:
    """Whether what the group exchanges goes on while this rank computes: through shared memory ranks carry it."""
    return group.size > 1 and isinstance(group, GroupCollectives)


def _say(config: EngineConfig, overlap: Overlap, where: str, carriers: str) -> None:
    if overlap.possible:
        log.info("%s compute during exchanges, in rounds of at least %d rows", where, config.dbo_token_threshold)
    elif config.enable_dbo:
        log.warning(
            "enable_dbo: %s exchange nothing that goes on by itself (%s): their rounds go as one lane",
            where,
            f"carried by {carriers}" if carriers else "nothing at all",
        )
