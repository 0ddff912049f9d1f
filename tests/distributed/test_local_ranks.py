"""Two ranks as local processes: they start from anywhere, end with their parent, and say which of them was lost."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from gateway.every_rpc import LEADER, assert_closed_to_strangers
from patience import NOTICED_S

from outrider import LLM, OutriderError, SamplingParams
from outrider.workers.types.errors import EngineStoppedError

SOURCE = Path(__file__).parents[2] / "src"
LONG = SamplingParams(temperature=0, max_tokens=4000, ignore_eos=True)


@pytest.fixture
def llm() -> Iterator[LLM]:
    with LLM("scout", pipeline_parallel_size=2, kv_cache_memory_bytes=256 << 20) as llm:
        yield llm


def _ranks() -> list[psutil.Process]:
    """The rank processes of this one, by age."""
    own = psutil.Process().children(recursive=True)
    ranks = [p for p in own if "outrider.workers.serving.rank" in p.cmdline()]
    return sorted(ranks, key=lambda p: p.create_time())


def _assert_no_rank_is_left() -> None:
    deadline = time.monotonic() + 10
    while left := [p for p in _ranks() if p.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("rank", "sign"),
    [
        (0, signal.SIGKILL),
        (1, signal.SIGKILL),
        pytest.param(0, signal.SIGSTOP, marks=pytest.mark.full),  # serve's tests freeze one too
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.full),
    ],
)
def test_a_rank_that_dies_or_freezes_is_named_soon(llm: LLM, rank: int, sign: signal.Signals) -> None:
    _assert_named_when_struck(llm, rank, sign)


@pytest.mark.parametrize("sign", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.full)])
def test_a_rank_that_shares_a_stage_is_named_too(sign: signal.Signals) -> None:
    with LLM("scout", tensor_parallel_size=2, kv_cache_memory_bytes=256 << 20) as llm:
        _assert_named_when_struck(llm, 1, sign)


def _assert_named_when_struck(llm: LLM, rank: int, sign: signal.Signals) -> None:
    started = threading.Event()

    def strike() -> None:
        started.wait()
        _ranks()[rank].send_signal(sign)

    threading.Thread(target=strike, daemon=True).start()
    deltas = llm.stream("def main():", LONG)
    next(deltas)
    started.set()
    began = time.monotonic()
    with pytest.raises(EngineStoppedError, match=f"rank {rank} "):
        list(deltas)

    assert time.monotonic() - began < NOTICED_S
    _assert_no_rank_is_left()
    with pytest.raises(EngineStoppedError, match=f"rank {rank} "):
        llm.generate("def main():")


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_cancels_all_requests_and_the_engine_serves_the_next(llm: LLM) -> None:
    def interrupt() -> None:
        while not llm.status()[0].counters.running:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["The", "def"], LONG)

    deadline = time.monotonic() + 30
    while (left := llm.status()[0].counters).running + left.waiting:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert len(llm.generate("The", SamplingParams(max_tokens=3))[0].outputs[0].token_ids) == 3


def test_while_it_is_open_nobody_else_gets_in_and_closing_leaves_no_process() -> None:
    with LLM("scout", pipeline_parallel_size=2, kv_cache_memory_bytes=256 << 20):
        assert_closed_to_strangers(_ranks()[0].pid, LEADER)

    _assert_no_rank_is_left()


def test_an_unguarded_script_on_stdin_runs_two_stages_and_leaves_nothing() -> None:
    script = (
        "from outrider import LLM, SamplingParams\n"
        "llm = LLM('scout', pipeline_parallel_size=2, kv_cache_memory_bytes=256 << 20)\n"
        "print(llm.generate('import os', SamplingParams(temperature=0, max_tokens=3))[0].outputs[0].finish_reason)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}

    done = subprocess.run([sys.executable], input=script, capture_output=True, text=True, timeout=120, env=environment)

    assert done.returncode == 0, done.stderr
    assert (done.stdout.strip(), done.stderr.strip()) == ("length", "")


def test_a_rank_that_cannot_load_says_why_in_one_line(tmp_path: Path) -> None:
    scout = SOURCE / "outrider" / "models" / "scout"
    for file in scout.iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)

    with pytest.raises(OutriderError, match=r"model\.safetensors") as caught:
        LLM(str(tmp_path), pipeline_parallel_size=2)

    assert "\n" not in str(caught.value)
    _assert_no_rank_is_left()


def test_more_stages_than_layers_is_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="pipeline_parallel_size=13 is more than the model's 12 layers"):
        LLM("scout", pipeline_parallel_size=13)
    assert _ranks() == []
