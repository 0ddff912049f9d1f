"""A rank of one stage over gloo, as on a machine of its own: runs rounds as two lanes where the rule says so.

    lanes_partner.py RANK PORT MODEL KERNELS DATA TENSOR EXPERTS [DIES_AT]

Says as JSON whether states and caches had the bits of one rank with one lane, and in which order it exchanged what; of
a peer that died (rank 1, at its hand-over number DIES_AT) what it heard, and which threads were left.
"""

import dataclasses
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rounds import Rows, load_model, random_tokens, slots_of

from outrider.workers.config import EngineConfig, ParallelConfig
from outrider.workers.engine.execution.lanes import Lanes
from outrider.workers.engine.execution.runner import StageRunner
from outrider.workers.loading.lanes import load_lanes
from outrider.workers.parallel import groups
from outrider.workers.parallel.collectives.collectives import ExchangeBrokenError
from outrider.workers.parallel.collectives.group_collectives import GroupCollectives, new_group
from outrider.workers.parallel.mesh import Mesh, group_name
from outrider.workers.parallel.shard import Shard
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.types.model.model_config import ModelConfig
from outrider.workers.types.rounds.round import Round, ints, offsets

CPU = torch.device("cpu")
BLOCKS = [[3, 1, 7, 5], [2, 6, 4, 8], [9, 11, 10, 12], [13, 15, 14, 16]]
LENGTHS = [45, 21, 6, 12]  # in the end
# By round: sequence -> its rows from, to.
ROUNDS: tuple[dict[int, tuple[int, int]], ...] = (
    {0: (0, 21), 1: (0, 17), 2: (0, 4), 3: (0, 1)},  # lanes of whole sequences, or of parts, as data groups have it
    {0: (21, 40), 3: (1, 2)},  # a prompt's chunk, cut; a group with one row
    {0: (40, 43), 1: (17, 20), 2: (4, 5)},  # drafts
    {3: (2, 3)},  # too few
    {3: (3, 12)},  # a group has nothing at all
    {0: (43, 45), 1: (20, 21), 2: (5, 6)},
)


class Noted(GroupCollectives):
    """Keeps who exchanged what, in order."""

    order: list[tuple[int, str]]

    def note(self, purpose: str, given: int, seconds: float) -> None:
        self.order.append((int(threading.current_thread().name.startswith("second-lane")), purpose))
        super().note(purpose, given, seconds)


class Partner:
    def __init__(self, rank: int, model: Path, kernels: str, parallel: ParallelConfig) -> None:
        self.order: list[tuple[int, str]] = []
        self.config = EngineConfig(str(model), **dataclasses.asdict(parallel), dbo_token_threshold=2)
        self.shape, self.parallel = ModelConfig.load(model), parallel
        self.sharing = self._sharing(rank)
        lanes = load_lanes(self.config, self.sharing, rank, f"machine {rank}", CPU)
        assert lanes is not None, "ranks of several machines overlap"
        self.lanes: Lanes = lanes
        self.split, self.whole = load_model(model, kernels, sharing=self.sharing), load_model(model, kernels)
        data = self.sharing.shard.data
        self.runner = StageRunner(self.split.stages[0], CPU, data, lanes=lanes)
        self.alone = StageRunner(self.whole.stages[0], CPU, data)

    def rounds(self) -> Iterator[Round]:
        texts = [random_tokens(length, self.shape.vocab_size, seed=length) for length in LENGTHS]
        for number, spans in enumerate(ROUNDS):
            parts = {n: Rows(texts[n][first:end], first, BLOCKS[n]) for n, (first, end) in spans.items()}
            yield _round(number, parts, self.parallel.data_parallel_size)

    def differences(self) -> list[str]:
        """Between one rank with one lane and this one."""
        found = [
            f"states of round {round.round_id}"
            for round in self.rounds()
            if not torch.equal(self.runner.forward(round, None)[0], self.alone.forward(round, None)[0])
        ]
        sequences = range(self.sharing.shard.data, len(LENGTHS), self.parallel.data_parallel_size)
        slots = [slot for n in sequences for slot in slots_of(BLOCKS[n], LENGTHS[n])]
        return found + ["caches"] * (not torch.equal(self.split.cached(slots), self.whole.cached(slots)))

    def _sharing(self, rank: int) -> Sharing:
        mesh, met = Mesh.of(self.parallel), {}
        for members in mesh.groups().values():
            process_group = new_group(members)
            if rank in members:
                met[members] = Noted(process_group, group_name(members), 30.0)
                met[members].order = self.order
        return Sharing.of(Shard.of(self.parallel, rank, self.shape), met, mesh, rank)


def _round(number: int, parts: dict[int, Rows], datas: int) -> Round:
    nothing = ints([0] * len(parts))
    return Round(
        round_id=number,
        sequence_ids=ints(list(parts)),
        query_offsets=offsets([len(part.tokens) for part in parts.values()]),
        token_ids=ints([token for part in parts.values() for token in part.tokens]),
        starts=ints([part.start for part in parts.values()]),
        write_from=nothing,
        sample_counts=nothing,
        score_counts=nothing,
        next_token_ids=nothing,
        block_offsets=offsets([len(part.blocks) for part in parts.values()]),
        block_ids=ints([block for part in parts.values() for block in part.blocks]),
        owners=ints([n % datas for n in parts]) if datas > 1 else ints(),
        draft_steps=nothing,
        follows=nothing,
        followed_from=nothing,
    )


def _dies(partner: Partner, hand_over_number: int) -> None:
    group = partner.sharing.stage
    assert isinstance(group, GroupCollectives)
    go_on, left = group.on_launched, [hand_over_number]

    def hand_over() -> None:
        left[0] -= 1
        if not left[0]:
            os._exit(1)
        go_on()

    group.on_launched = hand_over


def _told(partner: Partner) -> Any:
    try:
        partner.differences()
    except ExchangeBrokenError as error:
        return {"error": str(error)}
    return {}


def main() -> None:
    rank, port = map(int, sys.argv[1:3])
    data, tensor, experts = map(int, sys.argv[5:8])
    parallel = ParallelConfig(data_parallel_size=data, tensor_parallel_size=tensor, expert_parallel_size=experts)
    groups.join(rank, parallel.world_size, "127.0.0.1", port, CPU)
    partner = Partner(rank, Path(sys.argv[3]), sys.argv[4], parallel)
    if len(sys.argv) > 8:
        if rank == 1:
            _dies(partner, int(sys.argv[8]))
        said = _told(partner)
    else:
        said = {"differences": partner.differences(), "two_lanes": partner.lanes.rounds, "order": partner.order}
    groups.leave()
    said["threads"] = [thread.name for thread in threading.enumerate() if thread.name.startswith("second-lane")]
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
