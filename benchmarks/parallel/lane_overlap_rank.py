"""A rank of one stage, for benchmarks/parallel/lane_overlap.py: times rounds as one lane and as two."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from outrider.workers.config import EngineConfig, resolve_model
from outrider.workers.engine.execution.runner import StageRunner
from outrider.workers.loading.lanes import load_lanes
from outrider.workers.loading.model import ModelPart, load_parts
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel import groups
from outrider.workers.parallel.collectives.collectives import total_traffic
from outrider.workers.parallel.collectives.group_rendezvous import connect_groups
from outrider.workers.parallel.mesh import Mesh
from outrider.workers.parallel.shard import Shard
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.types.model.model_config import ModelConfig
from outrider.workers.types.rounds.round import Round, ints, offsets

CPU = torch.device("cpu")
PORT = 29400
BLOCKS = 2048


@dataclass(frozen=True, slots=True)
class Timed:
    """Of one round."""

    seconds: float
    exchange_s: float  # waiting for others


class OverlapRank:
    def __init__(self, rank: int, model: str, layers: int, sizes: tuple[int, int, int], leader: str) -> None:
        """Of the first `layers` layers. `sizes`: data, tensor and expert parallel."""
        data, tensor, experts = sizes
        config = EngineConfig(
            model,
            data_parallel_size=data,
            tensor_parallel_size=tensor,
            expert_parallel_size=experts,
            dbo_token_threshold=2,
        )
        groups.join(rank, config.world_size, leader, PORT, CPU)
        path, mesh, machine = resolve_model(model), Mesh.of(config), f"machine {rank}"
        self._model = ModelConfig.load(path)
        met = connect_groups(rank, mesh, CPU, machine, 60.0, str)
        self._sharing = Sharing.of(Shard.of(config, rank, self._model), met, mesh, rank)
        stage = load_parts(self._wanted(config, Checkpoint(path), range(layers))).stage
        stage.allocate_cache(BLOCKS)
        own, self._datas = self._sharing.shard.data, data
        lanes = load_lanes(config, self._sharing, rank, machine, CPU)
        self._runners = {1: StageRunner(stage, CPU, own), 2: StageRunner(stage, CPU, own, lanes=lanes)}
        self.same_bits = True

    def timed(self, sequences: int, rows: int, context: int, block_size: int, repeats: int) -> dict[int, list[Timed]]:
        """By lanes, in turns: rounds of `rows` rows of each of `sequences`, behind `context` tokens in the cache."""
        self._run(1, self._round(sequences, context, 0, block_size))
        round = self._round(sequences, rows, context, block_size)
        found: dict[int, list[Timed]] = {1: [], 2: []}
        for turn in range(1 + repeats):
            states = {}
            for lanes in found:
                before = self._exchanged_s()
                began = time.perf_counter()
                states[lanes] = self._run(lanes, round)
                took = time.perf_counter() - began
                if turn:  # the first one is not counted
                    found[lanes].append(Timed(took, self._exchanged_s() - before))
            self.same_bits &= torch.equal(states[1], states[2])
        return found

    def leave(self) -> None:
        groups.leave()

    def _run(self, lanes: int, round: Round) -> Tensor:
        return self._runners[lanes].forward(round, None)[0]

    def _exchanged_s(self) -> float:
        return sum(each.seconds for each in total_traffic(self._sharing.groups).values())

    def _round(self, sequences: int, rows: int, start: int, block_size: int) -> Round:
        blocks = -(-(start + rows) // block_size)
        random, nothing = np.random.default_rng(7), ints([0] * sequences)
        return Round(
            sequence_ids=np.arange(sequences),
            query_offsets=offsets([rows] * sequences),
            token_ids=random.integers(0, self._model.vocab_size, sequences * rows),
            starts=ints([start] * sequences),
            write_from=nothing,
            sample_counts=nothing,
            score_counts=nothing,
            next_token_ids=nothing,
            block_offsets=offsets([blocks] * sequences),
            block_ids=ints([n * 32 + block for n in range(sequences) for block in range(blocks)]),
            owners=np.arange(sequences) % self._datas if self._datas > 1 else ints(),
            draft_steps=nothing,
            follows=nothing,
            followed_from=nothing,
        )

    def _wanted(self, config: EngineConfig, checkpoint: Checkpoint, layers: range) -> ModelPart:
        return ModelPart(
            config=config,
            model=self._model,
            checkpoint=checkpoint,
            layers=layers,
            device=CPU,
            dtype=torch.float32,
            kernels="compiled",
            drafts=False,
            starts=SequenceStarts(self._model.eos_token_ids),
            progress=lambda done, total: None,
            sharing=self._sharing,
        )
