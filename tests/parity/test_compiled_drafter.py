"""Compiled drafts are those made in PyTorch, token by token; with a cut head, those of the full one masked to it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import random_config, write_checkpoint
from numpy.typing import NDArray
from rounds import BLOCK_SIZE, CompiledModel, Model, Rows, load_mtp, make_pairs, random_tokens, slots_of
from torch import Tensor

from outrider.workers.config import resolve_model
from outrider.workers.drafting.compiled_draft_model import CompiledDraftModel
from outrider.workers.drafting.draft_model import DraftRequest
from outrider.workers.drafting.pairs import Pairs, joined
from outrider.workers.drafting.stopping import made_together
from outrider.workers.drafting.torch_draft_model import TorchDraftModel
from outrider.workers.model.mtp import MtpModules
from outrider.workers.model.rows import Rows as FlatRows
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import IntArray, SequenceStart, ints
from outrider.workers.types.rounds.stop_rule import StopRule

LENGTHS = (2, 17, 40, 63, 66, 90)
BLOCKS = 64
EOS = (1,)


def token_ids(drafts: list[Drafts]) -> list[list[int]]:
    return [some.token_ids for some in drafts]


def leads(drafts: list[Drafts]) -> list[float]:
    return [lead for some in drafts for lead in some.confidences]


@dataclass
class Masked:
    """MTP modules whose head knows the tokens `ids` only."""

    modules: MtpModules
    ids: NDArray[np.int32]

    @property
    def count(self) -> int:
        return self.modules.count

    def run(self, rows: FlatRows, hidden: Tensor, module: int = 0, wanted: IntArray | None = None) -> Tensor:
        return self.modules.run(rows, hidden, module, wanted)

    def logits(self, state: Tensor) -> Tensor:
        logits = self.modules.logits(state)
        masked = torch.full_like(logits, -torch.inf)
        masked[:, torch.from_numpy(self.ids).long()] = logits[:, torch.from_numpy(self.ids).long()]
        return masked


@dataclass
class Twins:
    """The same drafter on both paths, and sequences with their true states to draft for."""

    torchs: TorchDraftModel
    compiled: CompiledDraftModel
    model: CompiledModel
    modules: MtpModules
    tokens: list[list[int]]
    states: list[Tensor]
    tables: list[list[int]]

    @classmethod
    def load(
        cls,
        path: Path,
        tokens: list[list[int]],
        starts: SequenceStarts,
        *,
        ids: NDArray[np.int32] | None = None,
        threads: int = 1,
        stages: int = 1,
    ) -> "Twins":
        own = Model.load(path, blocks=BLOCKS)
        modules = load_mtp(path, own.stages[0], blocks=BLOCKS)
        blocks = random.Random(0).sample(range(BLOCKS), BLOCKS)
        tables = [[blocks.pop() for _ in range((len(some) + 16) // BLOCK_SIZE + 1)] for some in tokens]
        states = [own.hidden(Rows(some[:-1], 0, table)) for some, table in zip(tokens, tables, strict=True)]
        model = CompiledModel.load(path, blocks=BLOCKS, drafts=True, head_ids=ids, threads=threads, stages=stages)
        assert model.module is not None
        reference = modules if ids is None else Masked(modules, ids)
        return cls(
            TorchDraftModel(reference, starts),  # type: ignore[arg-type]  # a double
            CompiledDraftModel(model.module, starts),
            model,
            modules,
            tokens,
            states,
            tables,
        )

    def pairs(self, sequence: int, first: int, end: int) -> Pairs:
        states, table = self.states[sequence][first:end], self.tables[sequence]
        return make_pairs(states, self.tokens[sequence], first, table, sequence=sequence)

    def drafts(self, parts: Sequence[Pairs], depths: Sequence[int]) -> list[list[int]]:
        """Tokens drafted after the last pair of every part whose depth is not zero: equal on both paths.

        So are their leads over the next best, but for rounding.
        """
        pairs, going = joined(parts), np.flatnonzero(depths)
        wanted = self.torchs.draft(pairs, DraftRequest(going, ints(depths)[going]))
        found = self.compiled.draft(pairs, DraftRequest(going, ints(depths)[going]))
        assert token_ids(found) == token_ids(wanted)
        assert leads(found) == pytest.approx(leads(wanted), rel=1e-3, abs=1e-3)
        assert [len(drafts) for drafts in found] == ints(depths)[going].tolist()
        return token_ids(found)

    def assert_caches_agree(self, sequence: int, entries: int) -> None:
        """Slots 1 and up hold the same latents on both paths, the drafted ones too, in every module's cache."""
        slots = slots_of(self.tables[sequence], entries)[1:]
        wanted = torch.stack([layer[slots] for layer in self.modules.cache.layers])
        found = self.model.cached_pairs(slots).view(torch.float32)[:, :, : wanted.shape[2]]
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=2e-5)


def drawn_params(draw: random.Random, vocab: int) -> SamplingParams:
    return SamplingParams(
        temperature=draw.choice([0.0, 0.0, 0.3, 1.0, 1.5]),
        top_k=draw.choice([0, 0, 1, 7, vocab]),
        top_p=draw.choice([1.0, 0.4, 0.95]),
        min_p=draw.choice([0.0, 0.0, 0.1]),
        min_tokens=draw.choice([0, 3, 50]),
        max_tokens=100,
        stop_token_ids=draw.sample(range(vocab), draw.choice([0, 5])),
    )


def drawn_starts(seed: int, vocab: int, lengths: Sequence[int], outputs: int = 3) -> SequenceStarts:
    """Sequence s has `lengths[s]` tokens, the last few of them output."""
    draw, starts = random.Random(seed), SequenceStarts(EOS)
    starts.begin(
        SequenceStart(
            sequence_id=s,
            output_index=s,
            seed=seed - s,
            prompt_tokens=max(length - outputs, 1),
            params=drawn_params(draw, vocab),
        )
        for s, length in enumerate(lengths)
    )
    return starts


def drawn_twins(path: Path, seed: int, *, cut: int | None = None, modules: int = 1, **settings: Any) -> Twins:
    config = random_config(seed, n_shared_experts=1 + seed % 2, num_nextn_predict_layers=modules)
    write_checkpoint(path, config, seed)
    vocab = config["vocab_size"]
    tokens = [random_tokens(length, vocab, seed + length) for length in LENGTHS]
    starts = drawn_starts(seed, vocab, LENGTHS)
    ids = None if cut is None else np.array(sorted(random.Random(seed).sample(range(vocab), cut)), dtype=np.int32)
    return Twins.load(path, tokens, starts, ids=ids, **settings)


def run_rounds(twins: Twins, seed: int) -> list[list[int]]:
    """Every sequence's pairs in a few rounds, drafted for at depths 0..6 between them: all drafts."""
    draw, fed, drafts = random.Random(seed), [0] * len(twins.tokens), []
    while live := [s for s, some in enumerate(twins.tokens) if fed[s] < len(some) - 1]:
        chosen = draw.sample(live, draw.randint(1, len(live)))
        ends = [min(fed[s] + draw.choice([1, 1, 2, 5, 30]), len(twins.tokens[s]) - 1) for s in chosen]
        parts = [twins.pairs(s, fed[s], end) for s, end in zip(chosen, ends, strict=True)]
        depths = [draw.randint(0, 6) for _ in chosen]
        drafts += twins.drafts(parts, depths)
        for s, end, depth in zip(chosen, ends, depths, strict=True):
            twins.assert_caches_agree(s, end + max(depth, 1))
            fed[s] = end
    return drafts


@pytest.mark.parametrize("seed", range(8))
def test_a_drawn_models_drafts_and_drafted_cache_are_torchs_at_mixed_depths(seed: int, tmp_path: Path) -> None:
    twins = drawn_twins(tmp_path, seed, threads=1 + seed % 3, stages=1 + seed % 2, modules=(1, 1, 2, 3)[seed % 4])

    drafts = run_rounds(twins, seed)

    assert len({token for some in drafts for token in some}) > 10


@pytest.mark.full
@pytest.mark.parametrize("seed", range(100, 160))
def test_sixty_more_models_draft_as_torch_does(seed: int, tmp_path: Path) -> None:
    twins = drawn_twins(tmp_path, seed, threads=1 + seed % 3, stages=1 + seed % 2, modules=(1, 2, 3)[seed % 3])

    drafts = run_rounds(twins, seed)

    assert len({token for some in drafts for token in some}) > 10


@pytest.mark.parametrize("modules", [1, 3])
@pytest.mark.parametrize("depths", [[6] * 6, [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [0, 0, 16, 0, 1, 0]])
def test_sequences_stop_drafting_each_at_its_own_depth(depths: list[int], modules: int, tmp_path: Path) -> None:
    twins = drawn_twins(tmp_path, 3, modules=modules)

    drafts = twins.drafts([twins.pairs(s, 0, len(some) - 1) for s, some in enumerate(twins.tokens)], depths)

    assert [len(some) for some in drafts] == [depth for depth in depths if depth]


@pytest.mark.parametrize("step", [0.0, 0.4])
@pytest.mark.parametrize("modules", [1, 3])
def test_sequences_stop_drafting_where_their_patience_ends(modules: int, step: float, tmp_path: Path) -> None:
    endless, patient = (drawn_twins(tmp_path / name, 3, modules=modules) for name in ("endless", "patient"))
    parts = [endless.pairs(s, 0, len(some) - 1) for s, some in enumerate(endless.tokens)]
    stop_rules = [StopRule(0.0, 1.0, 1.0, 0.5, 0.8, each, step) for each in (0.0, 1.0, 0.24, 0.4, 0.24, 0.4)]
    going, depths = ints(range(6)), ints([6, 6, 6, 6, 6, 3])
    whole = endless.compiled.draft(joined(parts), DraftRequest(going, depths))

    for model in (patient.compiled, patient.torchs):
        found = model.draft(joined(parts), DraftRequest(going, depths, stop_rules=np.array(stop_rules)))

        ends = made_together(stop_rules, [some.confidences for some in whole])
        assert ends[1] == 1
        assert (ends[0] == 6) == (step == 0.0)
        assert len(set(ends)) > (2 if step == 0.0 else 1)
        assert token_ids(found) == [row[:end] for row, end in zip(token_ids(whole), ends, strict=True)]


@pytest.mark.parametrize(("seed", "modules"), [(0, 1), (5, 1), (5, 2)])
def test_a_backlog_of_one_sequences_pairs_goes_in_one_call(seed: int, modules: int, tmp_path: Path) -> None:
    """Later pairs see what the earlier entries of the same call write; companions come between."""
    twins, again = (drawn_twins(tmp_path / name, seed, modules=modules) for name in ("backlog", "whole"))
    waiting = [twins.pairs(4, 0, 20), twins.pairs(2, 0, 7), twins.pairs(4, 20, 21), twins.pairs(4, 21, 60)]

    drafts = twins.drafts([*waiting, twins.pairs(2, 7, 39), twins.pairs(4, 60, 65)], [0, 0, 0, 0, 4, 6])

    whole = again.drafts([again.pairs(2, 0, 39), again.pairs(4, 0, 65)], [4, 6])
    assert drafts == whole
    twins.assert_caches_agree(4, 65 + 6)


@pytest.mark.parametrize("first", [1, 20, 63, 64, 65, 80])
def test_a_sequence_that_is_followed_from_its_middle_sees_nothing_before(first: int, tmp_path: Path) -> None:
    """Whatever was left there: another sequence's entries in the same blocks, or nothing."""
    used, fresh = (drawn_twins(tmp_path / name, 3) for name in ("used", "fresh"))
    used.drafts([replace(used.pairs(5, 0, 89), hidden=3 * used.states[5])], [0])

    def middle(twins: Twins) -> list[list[int]]:
        begun = replace(twins.pairs(5, first, 85), first_slots=np.array([first + 1]))
        later = replace(twins.pairs(5, 85, 89), first_slots=np.array([first + 1]))
        beside = twins.pairs(2, 0, 30)
        return twins.drafts([begun, beside], [3, 2]) + twins.drafts([later], [6])

    assert middle(used) == middle(fresh)


def test_pairs_that_nobody_drafts_after_are_only_fed(tmp_path: Path) -> None:
    twins = drawn_twins(tmp_path, 1)

    assert twins.drafts([twins.pairs(3, 0, 30), twins.pairs(5, 0, 2)], [0, 0]) == []

    twins.assert_caches_agree(3, 31)


@pytest.mark.parametrize("cut", [2, 16, 33, 90])
def test_a_cut_heads_drafts_are_the_full_heads_masked_to_it(cut: int, tmp_path: Path) -> None:
    """With every transform: what is cut off has neither mass nor rank."""
    for seed in (2, 6, 7):
        twins = drawn_twins(tmp_path / str(seed), seed, cut=cut, threads=1 + seed % 2)
        reference = twins.torchs.module
        assert isinstance(reference, Masked)

        drafts = [token for some in run_rounds(twins, seed) for token in some]

        assert set(drafts) <= set(reference.ids.tolist())
        assert len(set(drafts)) > min(cut, 10) // 2


def test_a_head_cut_to_one_token_drafts_it_alone_even_where_it_is_ruled_out(tmp_path: Path) -> None:
    config = random_config(5)
    write_checkpoint(tmp_path, config, 5)
    params = [SamplingParams(temperature=t, min_tokens=50, max_tokens=50, stop_token_ids=[7]) for t in (0.0, 1.0)]
    starts = SequenceStarts(EOS)
    starts.begin(
        SequenceStart(sequence_id=s, output_index=0, seed=s, prompt_tokens=9, params=one)
        for s, one in enumerate(params)
    )
    tokens = [random_tokens(20, config["vocab_size"], s) for s in range(2)]
    twins = Twins.load(tmp_path, tokens, starts, ids=np.array([7], dtype=np.int32))

    pairs = joined([twins.pairs(0, 0, 15), twins.pairs(1, 0, 19)])
    assert token_ids(twins.compiled.draft(pairs, DraftRequest(ints([0, 1]), ints([4, 2])))) == [[7] * 4, [7] * 2]


def test_end_ids_within_a_cut_head_are_ruled_out_until_min_tokens(tmp_path: Path) -> None:
    """The head knows three tokens, two of which end the sequence; the first draft is token 2 of the output."""
    config = random_config(5)
    write_checkpoint(tmp_path, config, 5)
    tokens = [random_tokens(20, config["vocab_size"], 0)]
    starts = SequenceStarts(EOS)
    params = SamplingParams(temperature=1.0, min_tokens=5, max_tokens=50, stop_token_ids=[9])
    starts.begin([SequenceStart(sequence_id=0, output_index=0, seed=1, prompt_tokens=18, params=params)])
    twins = Twins.load(tmp_path, tokens, starts, ids=np.array([1, 4, 9], dtype=np.int32))

    drafts = twins.drafts([twins.pairs(0, 0, 19)], [16])[0]

    assert drafts[:3] == [4, 4, 4]
    assert {1, 9}.intersection(drafts[3:])


@pytest.mark.parametrize(("temperature", "cut"), [(0.0, None), (0.8, None), (0.8, 500)])
def test_scouts_drafts_are_torchs(temperature: float, cut: int | None) -> None:
    path = resolve_model("scout")
    text = CompiledModel.load(path).greedy([0, 5, 6], 40, range(8))
    tokens = [[0, 5, 6, *text], random_tokens(30, 4096, 1), random_tokens(70, 4096, 2)]
    starts = SequenceStarts((1,))
    params = SamplingParams(temperature=temperature, top_p=0.95 if temperature else 1.0)
    starts.begin(
        SequenceStart(sequence_id=s, output_index=0, seed=s, prompt_tokens=10, params=params) for s in range(3)
    )
    ids = None if cut is None else np.sort(np.random.default_rng(0).choice(4096, cut, replace=False)).astype(np.int32)
    twins = Twins.load(path, tokens, starts, ids=ids, threads=2)

    for first, end in ((0, 20), (20, 21), (21, 25), (25, 29)):
        drafts = twins.drafts([twins.pairs(s, first, end) for s in range(3)], [6, 3, 6])
        assert [len(some) for some in drafts] == [6, 3, 6]
