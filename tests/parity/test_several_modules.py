"""Draft j of a checkpoint with D MTP modules is module min(j, D)'s, whatever became of its sequence before.

The reference is a straight line: each module over the whole history, in float64, without cache, chunks or kept states.
"""

import itertools
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import random_config, rewrite, write_checkpoint
from parity.test_mtp import Reference, Weights
from rounds import BLOCK_SIZE, CompiledModel, Model, Rows, load_mtp, make_pairs, random_tokens, slots_of
from sharded import all_sharings, close_all, on_all_ranks
from torch import Tensor

from outrider import LLM, SamplingParams
from outrider.workers.config import ParallelConfig
from outrider.workers.drafting.compiled_draft_model import CompiledDraftModel
from outrider.workers.drafting.draft_model import AllGroups, DraftModel, DraftRequest
from outrider.workers.drafting.mtp_drafter import MtpDrafter
from outrider.workers.drafting.pairs import Pairs, joined
from outrider.workers.drafting.stopping import made_together
from outrider.workers.drafting.torch_draft_model import TorchDraftModel
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.text.outputs import CompletionOutput
from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.model.model_config import ModelConfig
from outrider.workers.types.rounds.round import Round, SequenceStart, Verdict, ints
from outrider.workers.types.rounds.stop_rule import NEVER_STOP, StopRule

VOCAB, LENGTH, DEPTH = 97, 40, 6
BLOCKS, OTHERS = [6, 2, 9, 4], [3, 11, 8, 10]
STOP_RULE = StopRule(fixed=0.0, lead=2.0, bend=2.0, first=0.5, further=1.0, each=0.45, step=0.0)
CUTS = (0, 7, 8, 11, 20)  # the rounds in which the tokens become certain
PATHS = ("torch", "compiled")
SHARED = {
    "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 2, "topk_group": 1,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1,
}  # fmt: skip
SPLITS = {
    "TP2": ParallelConfig(tensor_parallel_size=2),
    "DP2+EP2": ParallelConfig(data_parallel_size=2, expert_parallel_size=2),
}


def _write(path: Path, modules: int) -> Path:
    """The same model and first module, however many `modules` there are."""
    _weights(path, modules)
    return path


def _weights(path: Path, modules: int, **changes: int) -> tuple[dict[str, object], Weights]:
    config = random_config(4, num_nextn_predict_layers=modules, vocab_size=VOCAB, rope_scaling=None, **changes)
    weights = write_checkpoint(path, config, seed=4)
    return config, {name: tensor.double() for name, tensor in weights.items()}


class Bench:
    """A drafter by hand: the model's states of one text, and a draft model with its cache."""

    def __init__(self, path: Path, kernels: str, sharing: Sharing | None = None) -> None:
        self.tokens = random_tokens(LENGTH + 1, VOCAB, seed=8)
        model = Model.load(path)
        self.hidden = model.hidden(Rows(self.tokens[:-1], 0, BLOCKS))
        self.starts = SequenceStarts(())
        self.starts.begin(
            SequenceStart(sequence_id=s, output_index=0, seed=0, prompt_tokens=1, params=SamplingParams(temperature=0))
            for s in range(4)
        )
        self.drafts: DraftModel
        if kernels == "torch":
            stage = model.stages[0] if sharing is None else Model.load(path, sharing=sharing).stages[0]
            self._torch = load_mtp(path, stage, blocks=12)
            split = sharing is not None and sharing.tensor.size > 1
            vocabulary = sharing.columns(VOCAB, "logits", unit=1) if sharing is not None and split else None
            self.drafts = TorchDraftModel(self._torch, self.starts, vocabulary)
        else:
            self._compiled = CompiledModel.load(path, blocks=12, drafts=True, sharing=sharing)
            assert self._compiled.module is not None
            self.drafts = CompiledDraftModel(self._compiled.module, self.starts)
        self._kernels = kernels

    def pairs(self, first: int, end: int, blocks: Sequence[int] = BLOCKS, sequence: int = 0, written: int = 0) -> Pairs:
        """The pairs of positions `first` .. `end` - 1; slots before `written` are others' too."""
        return make_pairs(self.hidden[first:end], self.tokens, first, blocks, sequence=sequence, write_from=written)

    def feed(
        self, *parts: Pairs, depth: int = 0, steps: int | None = None, stop_rules: StopRule = NEVER_STOP
    ) -> list[tuple[int, float]]:
        """What is drafted after the last pair of the last of them, with its leads."""
        pairs = joined(parts)
        going = ints([len(pairs.lengths) - 1] if depth else [])
        ends = np.array([stop_rules] if depth else np.zeros((0, len(stop_rules))))
        groups = None if steps is None else AllGroups(steps, LENGTH, 1)
        found = self.drafts.draft(pairs, DraftRequest(going, ints([depth] if depth else []), groups, ends))
        return list(zip(found[0].token_ids, found[0].confidences, strict=True)) if depth else []

    def cached(self, blocks: Sequence[int] = BLOCKS, slots: int = LENGTH + 1) -> list[Tensor]:
        """What each module has in its slots of a sequence, from the first that it writes."""
        numbers = slots_of(blocks, slots)
        if self._kernels == "torch":
            caches = [layer[numbers] for layer in self._torch.cache.layers]
        else:
            caches = list(self._compiled.cached_pairs(numbers))
        return [cache[module + 1 :] for module, cache in enumerate(caches)]


def _assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    for module, (own, other) in enumerate(zip(found, wanted, strict=True)):
        assert torch.equal(own, other), f"module {module}"


def _reference_drafts(config: dict[str, object], weights: Weights, bench: Bench, end: int) -> list[tuple[int, float]]:
    """`DEPTH` drafts behind token `end`, and how far each one's logit leads: module by module, then by recursion."""
    layers, count = int(str(config["num_hidden_layers"])), int(str(config["num_nextn_predict_layers"]))
    states, tokens, drafts = bench.hidden[:end].double(), bench.tokens[1 : end + 1], []
    before = states  # what the module in turn is fed, row by row
    for step in range(DEPTH):
        module = Reference(weights, config, layers + min(step, count - 1))
        if step >= count:  # the last module again: its own state, one row further
            before = torch.cat([before, states[-1:]])
            fed = tokens[count - 1 :]
        else:
            before, fed = states, tokens[step:]
        states = module.states(before, fed)
        best = (states[-1] @ module.head.T).topk(2)
        drafts.append((int(best.indices[0]), float(best.values[0] - best.values[1])))
        tokens = [*tokens, drafts[-1][0]]
    return drafts


@pytest.mark.parametrize("kernels", PATHS)
@pytest.mark.parametrize("modules", [1, 2, 3])
def test_each_draft_is_that_of_its_module_in_a_straight_line(modules: int, kernels: str, tmp_path: Path) -> None:
    config, weights = _weights(tmp_path, modules)
    bench = Bench(tmp_path, kernels)

    for first, end in itertools.pairwise((0, 1, 2, 9, 10, 13, 33, LENGTH)):
        found = bench.feed(bench.pairs(first, end), depth=DEPTH)
        wanted = _reference_drafts(config, weights, bench, end)

        assert [token for token, _ in found] == [token for token, _ in wanted]
        assert [lead for _, lead in found] == pytest.approx([lead for _, lead in wanted], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("kernels", PATHS)
@pytest.mark.parametrize("modules", [2, 3])
def test_every_modules_cache_has_the_bits_of_one_pass_however_a_text_is_cut(
    modules: int, kernels: str, tmp_path: Path
) -> None:
    """In chunks with provisional drafts between them, or several of one sequence's chunks in one call."""
    whole, cut, late = (Bench(_write(tmp_path, modules), kernels) for _ in range(3))
    whole.feed(whole.pairs(0, LENGTH))

    for first, end in itertools.pairwise((0, 1, 2, 3, 17, 18, 20, LENGTH)):
        drafts = cut.feed(cut.pairs(first, end), depth=1 + end % DEPTH)
    late.feed(late.pairs(0, 5), late.pairs(0, 3, OTHERS, sequence=1), late.pairs(5, 6))
    again = late.feed(late.pairs(3, LENGTH, OTHERS, sequence=1), late.pairs(6, LENGTH), depth=DEPTH)

    _assert_same(cut.cached(), whole.cached())
    _assert_same(late.cached(), whole.cached())
    _assert_same(late.cached(OTHERS), whole.cached())
    assert drafts == again[: len(drafts)]


@pytest.mark.parametrize("kernels", PATHS)
@pytest.mark.parametrize("modules", [2, 3])
def test_behind_a_cached_prefix_every_module_goes_on_as_if_it_had_read_it(
    modules: int, kernels: str, tmp_path: Path
) -> None:
    """As many tokens as there are modules are computed again, in any chunks; nothing of the prefix is written."""
    whole, hit = (Bench(_write(tmp_path, modules), kernels) for _ in range(2))
    expected = whole.feed(whole.pairs(0, LENGTH), depth=DEPTH)
    prefix = 2 * BLOCK_SIZE
    hit.feed(hit.pairs(0, prefix + 1))
    before, table = hit.cached(slots=prefix), [*BLOCKS[:2], *OTHERS[2:]]

    for first, end in itertools.pairwise((prefix - modules, prefix - 1, prefix, prefix + 3, LENGTH)):
        found = hit.feed(hit.pairs(first, end, table, sequence=1, written=prefix), depth=DEPTH)

    _assert_same(hit.cached(slots=prefix), before)
    _assert_same(hit.cached(table), whole.cached())
    assert found == expected


@pytest.mark.parametrize("kernels", PATHS)
def test_a_sequence_that_begins_anew_leaves_no_state_behind(kernels: str, tmp_path: Path) -> None:
    """Preempted, it has other blocks; what it had reached before is no part of its second beginning."""
    whole, again = (Bench(_write(tmp_path, 3), kernels) for _ in range(2))
    expected = whole.feed(whole.pairs(0, LENGTH), depth=DEPTH)
    again.feed(again.pairs(0, 21), depth=2)

    again.feed(again.pairs(0, 6, OTHERS), depth=2)
    found = again.feed(again.pairs(6, LENGTH, OTHERS), depth=DEPTH)

    _assert_same(again.cached(OTHERS), whole.cached())
    assert found == expected


@pytest.mark.parametrize("kernels", PATHS)
def test_a_gap_is_only_a_matter_of_acceptance(kernels: str, tmp_path: Path) -> None:
    """Where the states before a pair are nowhere, later modules begin later, and see their own slots alone."""
    clean, used = (Bench(_write(tmp_path, 3), kernels) for _ in range(2))
    used.feed(replace(used.pairs(0, LENGTH), hidden=3 * used.hidden))  # what another text left there

    def middle(bench: Bench) -> list[tuple[int, float]]:
        begun = replace(bench.pairs(20, 30, sequence=1), first_slots=ints([21]))
        later = replace(bench.pairs(30, LENGTH, sequence=1), first_slots=ints([21]))
        return bench.feed(begun, depth=4) + bench.feed(later, depth=DEPTH)

    assert middle(used) == middle(clean)


@pytest.mark.parametrize("kernels", PATHS)
@pytest.mark.parametrize("modules", [1, 3])
def test_drafting_ends_where_patience_does(modules: int, kernels: str, tmp_path: Path) -> None:
    """The drafts until then are those of a drafting without end, and so is what comes after."""
    endless, patient = (Bench(_write(tmp_path, modules), kernels) for _ in range(2))
    lengths = []
    for first, end in itertools.pairwise((0, 9, 10, 13, 33, LENGTH)):
        whole = endless.feed(endless.pairs(first, end), depth=DEPTH)
        found = patient.feed(patient.pairs(first, end), depth=DEPTH, stop_rules=STOP_RULE)

        assert found == whole[: made_together([STOP_RULE], [[lead for _, lead in whole]])[0]]
        lengths.append(len(found))

    assert 1 <= min(lengths) < max(lengths)
    assert min(lengths) < DEPTH


@pytest.mark.parametrize("kernels", PATHS)
@pytest.mark.parametrize("layout", SPLITS)
@pytest.mark.parametrize("stop_rules", [NEVER_STOP, STOP_RULE], ids=["to the depth", "as long as it is sure"])
def test_ranks_that_share_the_modules_draft_as_one_does(
    stop_rules: StopRule, layout: str, kernels: str, tmp_path: Path
) -> None:
    """Data groups go through as many passes, also one that has nothing to draft, or nothing at all."""
    _weights(tmp_path, 3, **SHARED)
    sharings = all_sharings(ModelConfig.load(tmp_path), SPLITS[layout])

    def run(bench: Bench, data: int) -> tuple[list[list[int]], list[Tensor]]:
        depths = (DEPTH, 0, 2) if data == 0 else (0, 0, 0)
        ends = (0, 20, 21, LENGTH) if data == 0 else (0, 9, 9, 30)
        parts = [bench.pairs(*cut, sequence=data) for cut in itertools.pairwise(ends)]
        drafts = [
            bench.feed(part if len(part) else nothing(part), depth=depth, steps=steps, stop_rules=stop_rules)
            for part, depth, steps in zip(parts, depths, (DEPTH, 0, 2), strict=True)
        ]
        return [[token for token, _ in some] for some in drafts], bench.cached()

    found = on_all_ranks(sharings, lambda sharing: run(Bench(tmp_path, kernels, sharing), sharing.shard.data))
    close_all(sharings)

    for sharing, (drafts, cached) in zip(sharings, found, strict=True):
        wanted, one = run(Bench(tmp_path, kernels), sharing.shard.data)
        assert drafts == wanted
        _assert_same(cached, one)


def test_what_was_kept_of_a_sequence_goes_with_it(tmp_path: Path) -> None:
    bench = Bench(_write(tmp_path, 3), "torch")
    assert isinstance(bench.drafts, TorchDraftModel)
    bench.feed(bench.pairs(0, 9), bench.pairs(0, 9, OTHERS, sequence=1))

    bench.drafts.forget(ints([0, 7]))

    assert list(bench.drafts._kept._kept) == [1]


def _round(tokens: Sequence[int], first: int, end: int, *, followed_from: int | None = 1) -> tuple[Round, Verdict]:
    """A chunk of a prompt that goes on after it, with four drafts asked for; none of one that is not followed."""
    begin = SequenceStart(sequence_id=1, output_index=0, seed=0, prompt_tokens=90, params=SamplingParams(temperature=0))
    round = Round(
        sequence_ids=ints([1]),
        query_offsets=ints([0, end - first]),
        token_ids=ints(tokens[first:end]),
        starts=ints([first]),
        write_from=ints([0]),
        sample_counts=ints([0]),
        next_token_ids=ints([tokens[end]]),
        block_offsets=ints([0, len(BLOCKS)]),
        block_ids=ints(BLOCKS),
        draft_steps=ints([4 if followed_from else 0]),
        follows=ints([1 if followed_from else 0]),
        followed_from=ints([followed_from or 1]),
        begins=(begin,) if first == 0 else (),
    )
    verdict = Verdict(
        token_offsets=ints([0, 0]), token_ids=ints(), accepted_rows=ints([end - first]), drafts_accepted=ints([0]),
        finish=ints([0]),
    )  # fmt: skip
    return round, verdict


def _drafts(path: Path, left_behind: float, *, skipped: int = 0) -> list[list[int]]:
    """Four drafts after each of the rounds; `left_behind` is what other sequences left in every slot of the cache.

    The drafter does not follow the first `skipped` rounds.
    """
    model = Model.load(path)
    modules = load_mtp(path, model.stages[0], blocks=12)
    for layer in modules.cache.layers:
        layer.fill_(left_behind)
    starts = SequenceStarts(())
    drafter = MtpDrafter(TorchDraftModel(modules, starts), starts, BLOCK_SIZE)
    tokens = random_tokens(CUTS[-1] + 1, VOCAB, seed=8)
    hidden = model.hidden(Rows(tokens[:-1], 0, BLOCKS))
    found = []
    for number, (first, end) in enumerate(itertools.pairwise(CUTS)):
        followed_from = None if number < skipped else CUTS[skipped] + 1
        round, verdict = _round(tokens, first, end, followed_from=followed_from)
        drafts = drafter.draft(round, verdict, hidden[first:end])
        found.append(drafts[1].token_ids if drafts else [])
    return found


@pytest.mark.parametrize("modules", [1, 2, 3])
def test_no_draft_depends_on_a_slot_that_was_never_written_for_its_sequence(modules: int, tmp_path: Path) -> None:
    path = _write(tmp_path, modules)

    clean, used = _drafts(path, 0.0), _drafts(path, 50.0)

    assert used == clean
    assert [len(drafts) for drafts in clean] == [4] * 4


@pytest.mark.parametrize("modules", [1, 3])
@pytest.mark.parametrize("skipped", [1, 2])
def test_no_draft_depends_on_slots_from_before_its_sequence_was_followed(
    skipped: int, modules: int, tmp_path: Path
) -> None:
    path = _write(tmp_path, modules)

    clean, used = (_drafts(path, left_behind, skipped=skipped) for left_behind in (0.0, 50.0))

    assert used == clean
    assert [len(drafts) for drafts in clean] == [0] * skipped + [4] * (4 - skipped)
    assert clean != _drafts(path, 0.0)


def test_the_first_draft_is_the_first_modules_however_many_follow(tmp_path: Path) -> None:
    one, three = (_drafts(_write(tmp_path / str(modules), modules), 0.0) for modules in (1, 3))

    assert [drafts[0] for drafts in three] == [drafts[0] for drafts in one]
    assert three != one


def _outputs(llm: LLM, speculation: str | int, *, together: bool) -> list[CompletionOutput]:
    prompts = [random_tokens(20, VOCAB, seed=1) + random_tokens(length, VOCAB, seed=length) for length in (0, 3, 19)]
    params = [
        SamplingParams(temperature=t, seed=5, max_tokens=24, ignore_eos=True, speculation=speculation)
        for t in (0.0, 1.0, 0.7)
    ]
    batches = [(prompts, params)] if together else [([p], [q]) for p, q in zip(prompts, params, strict=True)]
    return [out.outputs[0] for some, own in batches for out in llm.generate(some, own)]


@pytest.mark.parametrize("stages", [1, 2])
def test_the_text_is_the_same_at_every_depth_on_one_and_two_stages(stages: int, tmp_path: Path) -> None:
    path, drafted = _write(tmp_path, modules=2), 0
    with LLM(str(path), kv_cache_memory_bytes=4 << 20, pipeline_parallel_size=stages) as llm:
        plain = [out.token_ids for out in _outputs(llm, "off", together=False)]
        for speculation in (1, 2, 4, "auto"):
            for together in (False, True):
                outputs = _outputs(llm, speculation, together=together)
                assert [out.token_ids for out in outputs] == plain, (speculation, together)
                drafted += sum(out.speculation.drafted for out in outputs if out.speculation)
    assert drafted > 100


def nothing(pairs: Pairs) -> Pairs:
    none = ints([])
    return replace(
        pairs, sequence_ids=none, lengths=none, token_ids=none, positions=none, write_from=none, first_slots=none,
        tables=(),
    )  # fmt: skip


def _promise(path: Path, modules: int) -> Path:
    """What config.json says, whatever weights there are."""
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": modules}))
    return path


def test_a_checkpoint_that_lacks_modules_drafts_with_those_it_has_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _promise(_write(tmp_path, modules=1), 3)

    with caplog.at_level(logging.WARNING), LLM(str(path), kv_cache_memory_bytes=4 << 20, speculation=2) as llm:
        outputs = _outputs(llm, 2, together=True)

    assert all(out.speculation and out.speculation.drafted for out in outputs)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "has weights of 1 of its 3 MTP modules (model.layers.4.eh_proj.weight is missing)" in told[0]


def test_all_modules_are_swapped_and_only_as_many_as_there_are(tmp_path: Path) -> None:
    path, other = _write(tmp_path / "two", modules=2), tmp_path / "other"
    shutil.copytree(path, other)
    rewrite(other, lambda name, t: t + 0.5 * t.std() * torch.randn(t.shape) if "layers.4." in name else t)
    fewer = _promise(_write(tmp_path / "one", modules=1), 2)

    with LLM(str(path), kv_cache_memory_bytes=4 << 20, enable_prefix_caching=False) as llm:
        before = _outputs(llm, 4, together=True)
        llm.swap_drafter(str(other))
        swapped = _outputs(llm, 4, together=True)
        with pytest.raises(CheckpointError, match=r"one has weights of 1 MTP modules, and 2 are in use"):
            llm.swap_drafter(str(fewer))

    assert [out.token_ids for out in swapped] == [out.token_ids for out in before]
