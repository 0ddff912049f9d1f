"""A checkpoint with several MTP modules is drafted for by its first one alone."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from checkpoints import random_config, write_checkpoint
from rounds import BLOCK_SIZE, Model, Rows, load_mtp, random_tokens

from outrider import LLM, SamplingParams
from outrider.workers.engine.round import Round, SequenceStart, Verdict, ints
from outrider.workers.outputs import CompletionOutput
from outrider.workers.speculation.mtp_drafter import MtpDrafter
from outrider.workers.speculation.sequence_starts import SequenceStarts
from outrider.workers.speculation.torch_parts import TorchDraftModel

BLOCKS = [6, 2, 9]
CUTS = (0, 7, 8, 11, 20)  # the rounds in which the tokens become certain


def _write(path: Path, modules: int) -> Path:
    """The same model and first module, however many `modules` there are."""
    write_checkpoint(path, random_config(4, num_nextn_predict_layers=modules, vocab_size=97), seed=4)
    return path


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
        upkeep=ints([1 if followed_from else 0]),
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
    tokens = random_tokens(CUTS[-1] + 1, 97, seed=8)
    hidden = model.hidden(Rows(tokens[:-1], 0, BLOCKS))
    found = []
    for number, (first, end) in enumerate(itertools.pairwise(CUTS)):
        followed_from = None if number < skipped else CUTS[skipped] + 1
        round, verdict = _round(tokens, first, end, followed_from=followed_from)
        found.append(drafter.draft(round, verdict, hidden[first:end]).get(1, []))
    return found


def _output(path: Path, speculation: str | int) -> CompletionOutput:
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, speculation=speculation)
    with LLM(str(path), kv_cache_memory_bytes=4 << 20, speculation=speculation) as llm:
        return llm.generate([random_tokens(9, 97, seed=1)], params)[0].outputs[0]


@pytest.mark.parametrize("modules", [1, 2, 3])
def test_no_draft_depends_on_a_slot_that_was_never_written_for_its_sequence(modules: int, tmp_path: Path) -> None:
    path = _write(tmp_path, modules)

    clean, used = _drafts(path, 0.0), _drafts(path, 50.0)

    assert used == clean
    assert [len(drafts) for drafts in clean] == [4] * 4


@pytest.mark.parametrize("skipped", [1, 2])
def test_no_draft_depends_on_slots_from_before_its_sequence_was_followed(skipped: int, tmp_path: Path) -> None:
    path = _write(tmp_path, 1)

    clean, used = (_drafts(path, left_behind, skipped=skipped) for left_behind in (0.0, 50.0))

    assert used == clean
    assert [len(drafts) for drafts in clean] == [0] * skipped + [4] * (4 - skipped)
    assert clean != _drafts(path, 0.0)


def test_further_modules_change_no_draft(tmp_path: Path) -> None:
    one, three = (_drafts(_write(tmp_path / str(modules), modules), 0.0) for modules in (1, 3))

    assert three == one


def test_a_model_with_several_modules_writes_the_same_text_with_drafts_and_without(tmp_path: Path) -> None:
    drafted, plain = (_output(_write(tmp_path, modules=3), speculation) for speculation in (4, "off"))

    assert drafted.token_ids == plain.token_ids
    assert drafted.speculation is not None
    assert drafted.speculation.drafted_per_position[-1] > 0
