"""What the host does while a GPU runs a round: it hands out the tokens of the round before, and reads new requests."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from gpu.pretend_cuda import Counts
from gpu.r1 import BLOCK_SIZE, slice_of_r1, small_checkpoint

from outrider.workers.depth.policy import DepthPolicy
from outrider.workers.engine.engine import Engine
from outrider.workers.engine.execution.pipeline import SingleStage
from outrider.workers.engine.execution.runner import StageRunner
from outrider.workers.engine.execution.sampler import Sampler
from outrider.workers.engine.handle import EngineInfo
from outrider.workers.engine.scheduling.scheduler import Scheduler, SchedulerConfig
from outrider.workers.sampling.gpu_head import GpuHead
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.types.requests.request import Request, SequenceChunk
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams

CUDA, BLOCKS, TOKENS, LONGEST = torch.device("cuda", 0), 40, 6, 200
Chunks = queue.SimpleQueue[list[SequenceChunk]]
Check = Callable[[StructuredOutputsParams], "Future[Any]"]


def _engine(path: Path, check: Check) -> Engine:
    stage, _ = slice_of_r1(small_checkpoint(path), CUDA, BLOCKS, layers=3)
    stage.use_graphs()
    starts = SequenceStarts((1,))
    config = SchedulerConfig(
        max_num_seqs=4, max_num_batched_tokens=64, block_size=BLOCK_SIZE, num_blocks=BLOCKS, max_model_len=LONGEST
    )
    info = EngineInfo(
        fingerprint="f", max_model_len=LONGEST, vocab_size=512, dtype="bfloat16", numerics="fast", speculation="off",
        has_mtp=False,
    )  # fmt: skip
    return Engine(
        info=info,
        scheduler=Scheduler(config),
        pipeline=SingleStage(StageRunner(stage, CUDA, waits=False), Sampler(GpuHead(stage, starts), starts, LONGEST)),
        drafter=None,
        depth=DepthPolicy("off"),
        check=check,
        prepare=lambda constraint: Future(),
    )


def _request(name: str, **params: Any) -> Request:
    return Request(
        request_id=name, prompt_token_ids=(5, 6, 7), seed=0,
        params=SamplingParams(temperature=0.7, max_tokens=TOKENS, ignore_eos=True, **params),
    )  # fmt: skip


def _rounds(events: list[str]) -> list[list[str]]:
    """What happened up to each sync, and last of all what came after the last one."""
    rounds: list[list[str]] = [[]]
    for event in events:
        if event.startswith("to host"):
            rounds.append([])
        else:
            rounds[-1].append(event)
    return rounds


def test_the_host_works_between_a_rounds_launch_and_its_sync(pretend: Counts, tmp_path: Path) -> None:
    events, chunks, others = pretend.order, Chunks(), iter("abc")

    def check(constraint: StructuredOutputsParams) -> "Future[Any]":
        events.append("read")  # called as the engine reads the request
        return Future()

    engine = _engine(tmp_path, check)

    def deliver(gained: list[SequenceChunk]) -> None:
        events.append("delivered")
        if name := next(others, None):
            engine.submit(_request(name, structured_outputs=StructuredOutputsParams(regex="a")), chunks.put)
        chunks.put(gained)

    pretend.clear()
    engine.submit(_request("first"), deliver)
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    gained = [chunks.get(timeout=60) for _ in range(TOKENS)]
    engine.stop("test over")
    thread.join(60)

    assert [len(own[0].token_ids) for own in gained] == [1] * TOKENS
    rounds = _rounds(events)
    assert len(rounds) == TOKENS + 1, "one sync a round"
    assert ["delivered" in each for each in rounds] == [False, *[True] * TOKENS]
    assert [each.count("read") for each in rounds[1:4]] == [1, 1, 1]
    for each in rounds[1:-1]:
        after = each[len(each) - each[::-1].index("launch") :]
        assert after[0] == "delivered", "every launch of the round comes first"
        assert set(after) <= {"delivered", "read"}
        assert after.count("read") == each.count("read")
    assert rounds[-1] == ["delivered"], "the last tokens wait for no round"


def test_a_stopped_engine_delivers_what_its_last_rounds_brought(pretend: Counts, tmp_path: Path) -> None:
    engine, heard = _engine(tmp_path, lambda constraint: Future()), list[SequenceChunk]()

    def deliver(gained: list[SequenceChunk]) -> None:
        heard.extend(gained)
        engine.stop("test over")  # the second round is under way at the first call

    engine.submit(_request("first"), deliver)
    engine.run()

    assert [len(chunk.token_ids) for chunk in heard] == [1, 1, 0]
    assert [chunk.error for chunk in heard] == ["", "", "test over"]
