"""A row's bits survive everything that the engine does to its sequence: chunks, companions, drafts, hits, preemption.

What is compared is the state after the final norm, at every position of every request; in PyTorch the experts
chosen too.
"""

import queue
import threading
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import random_config, write_checkpoint
from torch import Tensor, nn

from outrider.workers.config import EngineConfig, resolve_model
from outrider.workers.depth.policy import DepthPolicy
from outrider.workers.drafting.mtp_drafter import MtpDrafter
from outrider.workers.engine.engine import Engine
from outrider.workers.engine.execution.pipeline import RoundResult, SingleStage
from outrider.workers.engine.execution.runner import StageRunner
from outrider.workers.engine.execution.sampler import Sampler
from outrider.workers.engine.handle import EngineInfo
from outrider.workers.engine.scheduling.scheduler import Scheduler, SchedulerConfig
from outrider.workers.loading.kernel_choice import resolve_kernels
from outrider.workers.loading.model import ModelPart, Parts, load_parts
from outrider.workers.model.moe import Router
from outrider.workers.model.weights import Checkpoint
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.types.model.model_config import ModelConfig
from outrider.workers.types.requests.request import Request, SequenceChunk
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import Round, Verdict

BLOCK, TOKENS = 4, 24
PROMPTS = [list(range(10 + 3 * n, 10 + 3 * n + 9 + 4 * n)) for n in range(5)]
CPU = torch.device("cpu")
KERNELS: dict[str, dict[str, Any]] = {
    "torch": {"kernels": "torch"},
    "compiled": {"kernels": "compiled"},
    "compiled bf16": {"kernels": "compiled", "dtype": "bfloat16"},
    "compiled int8": {"kernels": "compiled", "quantization": "int8"},
}


class Recorder(SingleStage):
    """A pipeline that remembers, by request's seed and position, the state and the experts of every accepted row."""

    def __init__(self, runner: StageRunner, sampler: Sampler) -> None:
        super().__init__(runner, sampler)
        self.states: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        self.experts: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        self.drafts: dict[tuple[int, int], list[list[int]]] = {}
        self.recomputed = 0
        self.hits = 0
        self._seeds: dict[int, int] = {}
        self._rounds: list[Round] = []
        self._chosen: list[Tensor] = []
        for module in runner.stage.modules() if isinstance(runner.stage, nn.Module) else ():
            if isinstance(module, Router):
                module.register_forward_hook(self._note_experts)

    def _note_experts(self, router: nn.Module, inputs: object, output: tuple[Tensor, Tensor]) -> None:
        self._chosen.append(output[0].clone())

    def dispatch(self, round: Round) -> None:
        self._chosen = []
        self._rounds.append(round)
        self._seeds.update((begin.sequence_id, begin.seed) for begin in round.begins)
        super().dispatch(round)

    def collect(self) -> RoundResult:
        result, round = super().collect(), self._rounds[-1]
        nothing = torch.zeros(round.rows, 0)
        chosen = torch.stack(self._chosen, dim=1) if self._chosen else nothing  # [rows, layers, k]
        rows = zip(round.sequence_ids.tolist(), round.starts.tolist(), round.query_offsets.tolist(), strict=False)
        taken = 0
        for s, (sequence_id, start, first) in enumerate(rows):
            self.hits += int(round.write_from[s]) > start
            for j in range(int(result.verdict.accepted_rows[s])):
                place = (self._seeds[sequence_id], start + j)
                self.recomputed += place in self.states
                self.states[place].append(result.hidden[taken].clone())
                self.experts[place].append(chosen[first + j])
                taken += 1
        return result


class DraftsRecorder(MtpDrafter):
    """Remembers, by request's seed and number of tokens, every draft made there."""

    made: dict[tuple[int, int], list[list[int]]]
    seeds: dict[int, int]

    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> Mapping[int, Drafts]:
        found = super().draft(round, verdict, hidden)
        self.seeds.update((begin.sequence_id, begin.seed) for begin in round.begins)
        ends = round.starts + verdict.accepted_rows
        for sequence_id, end in zip(round.sequence_ids.tolist(), ends.tolist(), strict=True):
            if sequence_id in found:
                self.made[self.seeds[sequence_id], end].append(found[sequence_id].token_ids)
        return found


def _parts(path: Path, starts: SequenceStarts, **settings: Any) -> Parts:
    config, engine = ModelConfig.load(path), EngineConfig(model=str(path), block_size=BLOCK, **settings)
    dtype = torch.bfloat16 if engine.dtype == "bfloat16" else torch.float32
    return load_parts(
        ModelPart(
            config=engine,
            model=config,
            checkpoint=Checkpoint(path),
            layers=range(config.num_hidden_layers),
            device=CPU,
            dtype=dtype,
            kernels=resolve_kernels(engine, CPU, dtype, config),
            drafts=True,
            starts=starts,
            progress=lambda done, total: None,
        )
    )


def _engine(
    path: Path, *, blocks: int, budget: int, speculation: str | int, **settings: Any
) -> tuple[Engine, Recorder]:
    starts, depth = SequenceStarts(()), DepthPolicy(speculation)
    parts = _parts(path, starts, **settings)
    parts.allocate_cache(blocks)
    assert parts.head is not None
    assert parts.draft_model is not None
    assert parts.module is not None
    limits = SchedulerConfig(
        max_num_seqs=8,
        max_num_batched_tokens=budget,
        block_size=BLOCK,
        num_blocks=blocks,
        max_model_len=120,
        speculation=speculation,
        recomputed_tokens=parts.module.count,
    )
    recorder = Recorder(StageRunner(parts.stage, CPU), Sampler(parts.head, starts, 120))
    drafter = DraftsRecorder(parts.draft_model, starts, BLOCK) if speculation != "off" else None
    if drafter is not None:
        recorder.drafts = drafter.made = defaultdict(list)
        drafter.seeds = {}
    info = EngineInfo(
        fingerprint="f", max_model_len=120, vocab_size=ModelConfig.load(path).vocab_size, dtype="float32",
        numerics="exact", speculation=str(speculation), has_mtp=True,
    )  # fmt: skip
    return Engine(
        info=info, scheduler=Scheduler(limits, depth), pipeline=recorder, drafter=drafter, depth=depth
    ), recorder


def _run(engine: Engine, prompts: dict[int, list[int]], temperature: float) -> dict[int, list[int]]:
    """Everything submitted at once; a request's number is its seed."""
    chunks: queue.SimpleQueue[list[SequenceChunk]] = queue.SimpleQueue()
    texts: dict[int, list[int]] = {number: [] for number in prompts}
    params = SamplingParams(temperature=temperature, max_tokens=TOKENS, ignore_eos=True)
    for number, prompt in prompts.items():
        request = Request(request_id=str(number), prompt_token_ids=tuple(prompt), params=params, seed=number)
        engine.submit(request, chunks.put)
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    while any(len(text) < TOKENS for text in texts.values()):
        for chunk in chunks.get(timeout=60):
            assert not chunk.error, chunk.error
            texts[int(chunk.request_id)] += chunk.token_ids
    engine.stop("done")
    thread.join(60)
    return texts


CASES = [(model, kernels) for model in ("scout", "random") for kernels in KERNELS]
LONG = [("scout", kernels) for kernels in KERNELS if kernels != "compiled"]  # the random model has them too


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random")
    write_checkpoint(folder, random_config(5, vocab_size=128, first_k_dense_replace=1, num_hidden_layers=3), seed=5)
    return folder


@pytest.mark.parametrize(
    ("model", "kernels"), [pytest.param(*case, marks=pytest.mark.full) if case in LONG else case for case in CASES]
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_rows_bits_survive_chunks_companions_drafts_hits_and_preemption(
    model: str, kernels: str, temperature: float, random_model: Path
) -> None:
    path = resolve_model("scout") if model == "scout" else random_model
    prompts = dict(enumerate([*PROMPTS, PROMPTS[4], PROMPTS[4]]))  # the last two may find their prompt in the cache
    texts: dict[int, list[int]] = {}
    references = []
    for number, prompt in prompts.items():
        engine, alone = _engine(path, blocks=64, budget=512, speculation="off", **KERNELS[kernels])
        texts |= _run(engine, {number: prompt}, temperature)
        references.append(alone)

    engine, crowded = _engine(path, blocks=16, budget=13, speculation=3, **KERNELS[kernels])
    found = _run(engine, prompts, temperature)

    assert found == texts
    assert crowded.recomputed - crowded.hits > 5, "nothing was preempted: the test is too easy"
    assert crowded.hits > 0, "nothing was found in the cache: the test is too easy"
    for alone in references:
        for place, (state,) in alone.states.items():
            assert crowded.states[place] or place[0] >= 4, place  # what shares a prompt need not compute it
            assert all(torch.equal(seen, state) for seen in crowded.states[place]), place
            assert all(torch.equal(seen, alone.experts[place][0]) for seen in crowded.experts[place]), place


@pytest.mark.parametrize(
    ("modules", "kernels"),
    [
        *[(modules, "compiled") for modules in (1, 2, 3)],
        *[pytest.param(modules, "torch", marks=pytest.mark.full) for modules in (1, 2, 3)],
    ],
)
def test_every_draft_survives_chunks_companions_hits_and_preemption(modules: int, kernels: str, tmp_path: Path) -> None:
    """A draft is made of the text before it alone: so every module's cache was what it would have been."""
    changes = {"vocab_size": 128, "num_nextn_predict_layers": modules, "num_hidden_layers": 2}
    write_checkpoint(tmp_path, random_config(5, **changes), seed=5)
    prompts = dict(enumerate([*PROMPTS, PROMPTS[4], PROMPTS[4]]))  # the last two may find their prompt in the cache
    alone: dict[tuple[int, int], list[list[int]]] = {}
    for number, prompt in prompts.items():
        engine, recorder = _engine(tmp_path, blocks=64, budget=512, speculation=4, **KERNELS[kernels])
        _run(engine, {number: prompt}, 0.0)
        alone |= recorder.drafts

    engine, crowded = _engine(tmp_path, blocks=14, budget=13, speculation=4, **KERNELS[kernels])
    _run(engine, prompts, 0.0)

    assert crowded.recomputed - modules * crowded.hits > 5, "nothing was preempted: the test is too easy"
    assert crowded.hits > 0, "nothing was found in the cache: the test is too easy"
    same = [
        drafts[: len(wanted)] == wanted[: len(drafts)]
        for place, made in crowded.drafts.items()
        for wanted in alone.get(place, [])
        for drafts in made
    ]
    assert all(same)
    assert len(same) > 50
