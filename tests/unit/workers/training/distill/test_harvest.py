"""Harvesting: what the shards hold, and that nothing is made twice or lost."""

from pathlib import Path

import pytest
import torch
from harvested import MAX_TOKENS, Harvested, start_llm
from rounds import Model, Rows

from outrider import LLM, SamplingParams
from outrider.workers.serving.harvest_shards import Harvest
from outrider.workers.training.distill.harvest import plan_tasks, run_harvest, tasks_left
from outrider.workers.types.errors import OutriderError


def close(states: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal but for the rounding to bfloat16, and that the compiled kernels sum in another order."""
    return torch.allclose(states.float(), expected, rtol=2**-7, atol=1e-3)


def test_a_sample_is_the_text_that_the_model_says_and_the_states_it_says_it_from(harvested: Harvested) -> None:
    harvest, model = Harvest(harvested.work / "harvest"), Model.load(harvested.checkpoint)
    tasks = {task.seed: task for task in plan_tasks(harvested.prompts, (0.0, 1.0), seed=0)}

    assert len(harvest) == len(tasks)
    for index, sample in enumerate(harvest.outlines[:6]):
        task, tokens = tasks[sample.seed], sample.token_ids.tolist()
        assert tuple(tokens[: sample.prompt_tokens]) == task.prompt.token_ids
        assert sample.temperature == task.temperature
        states = harvest.hidden(index, 0, len(tokens) - 1)
        expected = model.hidden(Rows(tokens[:-1], 0, [3, 5, 1, 2, 8]))
        assert close(states, expected)
        if task.temperature == 0:
            said = model.logits(expected[sample.prompt_tokens - 1 :]).argmax(-1).tolist()
            assert said == tokens[sample.prompt_tokens :]


def test_a_harvest_that_was_ended_goes_on_and_has_the_same_texts_in_the_end(
    harvested: Harvested, tmp_path: Path
) -> None:
    whole = Harvest(harvested.work / "harvest")
    tasks = plan_tasks(harvested.prompts, (0.0, 1.0), seed=0)
    reported: list[int] = []

    run_harvest(lambda: start_llm(harvested.checkpoint, tmp_path), tasks[:10], tmp_path, MAX_TOKENS, lambda n: None)
    shards = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")}
    run_harvest(lambda: start_llm(harvested.checkpoint, tmp_path), tasks, tmp_path, MAX_TOKENS, reported.append)

    assert reported == [10, len(tasks)]
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    texts = {sample.key: sample.token_ids.tolist() for sample in Harvest(tmp_path).outlines}
    assert texts == {sample.key: sample.token_ids.tolist() for sample in whole.outlines}


def test_what_is_done_needs_no_engine(harvested: Harvested) -> None:
    tasks = plan_tasks(harvested.prompts, (0.0, 1.0), seed=0)

    assert tasks_left(tasks, harvested.work / "harvest") == []
    run_harvest(_no_engine, tasks, harvested.work / "harvest", MAX_TOKENS, lambda n: None)


def _no_engine() -> LLM:
    raise AssertionError("everything is there")


def test_preempted_sequences_are_harvested_whole(harvested: Harvested, tmp_path: Path) -> None:
    prompts = [list(prompt.token_ids) for prompt in harvested.prompts[:6]]
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True)
    with LLM(
        str(harvested.checkpoint), harvest_path=str(tmp_path), enable_prefix_caching=False, block_size=4,
        kv_cache_memory_bytes=1 << 16, max_model_len=64,
    ) as llm:  # fmt: skip
        outputs = llm.generate(prompts, params)
    with_room = Model.load(harvested.checkpoint)

    harvest = Harvest(tmp_path)

    assert len(harvest) == len(prompts)
    texts = {(*out.prompt_token_ids, *out.outputs[0].token_ids) for out in outputs}
    for index, sample in enumerate(harvest.outlines):
        tokens = sample.token_ids.tolist()
        assert tuple(tokens) in texts
        expected = with_room.hidden(Rows(tokens[:-1], 0, [3, 5, 1, 2, 8]))
        assert close(harvest.hidden(index, 0, len(tokens) - 1), expected)


def test_sequences_that_began_in_the_prefix_cache_or_were_cancelled_are_not_kept(
    harvested: Harvested, tmp_path: Path
) -> None:
    prompt = list(harvested.prompts[0].token_ids) * 3
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    with LLM(str(harvested.checkpoint), harvest_path=str(tmp_path), kv_cache_memory_bytes=16 << 20) as llm:
        first = llm.generate([prompt], params)[0]
        again = llm.generate([prompt], params)[0]
        next(stream := llm.stream(prompt[::-1], params))
        stream.close()  # type: ignore[attr-defined]  # a generator

    assert again.num_cached_tokens > 0
    kept = [sample.token_ids.tolist() for sample in Harvest(tmp_path).outlines]
    assert kept == [[*prompt, *first.outputs[0].token_ids]]


def test_a_full_folder_ends_the_harvest_and_not_the_engine(harvested: Harvested, tmp_path: Path) -> None:
    tasks = plan_tasks(harvested.prompts[:2], (0.0,), seed=0)

    def start() -> LLM:
        return LLM(str(harvested.checkpoint), harvest_path=str(tmp_path / "file"), kv_cache_memory_bytes=16 << 20)

    (tmp_path / "file").write_text("not a folder")
    with start() as llm:
        outputs = llm.generate([list(task.prompt.token_ids) for task in tasks], SamplingParams(max_tokens=MAX_TOKENS))

    assert all(out.outputs[0].finish_reason for out in outputs)


def test_a_file_that_is_no_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "shard-0.safetensors").write_bytes(b"nothing")

    with pytest.raises(OutriderError, match=r"shard-0\.safetensors is damaged"):
        Harvest(tmp_path)


@pytest.mark.full
def test_stages_in_other_processes_harvest_the_same(harvested: Harvested, tmp_path: Path) -> None:
    whole, tasks = Harvest(harvested.work / "harvest"), plan_tasks(harvested.prompts[:4], (0.0, 1.0), seed=0)

    def start() -> LLM:
        return LLM(
            str(harvested.checkpoint), harvest_path=str(tmp_path), enable_prefix_caching=False,
            pipeline_parallel_size=2, kv_cache_memory_bytes=16 << 20,
        )  # fmt: skip

    run_harvest(start, tasks, tmp_path, MAX_TOKENS, lambda n: None)

    index = {sample.key: number for number, sample in enumerate(whole.outlines)}
    harvest = Harvest(tmp_path)
    assert len(harvest) == len(tasks)
    for number, sample in enumerate(harvest.outlines):
        count = len(sample.token_ids) - 1
        assert sample.token_ids.tolist() == whole.outlines[index[sample.key]].token_ids.tolist()
        assert torch.equal(harvest.hidden(number, 0, count), whole.hidden(index[sample.key], 0, count))
