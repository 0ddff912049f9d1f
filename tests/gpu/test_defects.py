"""Defects that a pretended GPU found, each with a regression test."""

import math
import re
import threading
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gpu.pretend_cuda import FREE_BYTES, Counts, DeviceMismatchError, inner
from torch import Tensor

from outrider import LLM, SamplingParams
from outrider.cluster.planning.efficiency import Efficiency
from outrider.cluster.planning.memory import StageMemory
from outrider.cluster.planning.presets import load_shape
from outrider.workers.config import EngineConfig, resolve_model
from outrider.workers.engine.execution.memory import free_bytes, round_bytes
from outrider.workers.loading.kernel_choice import resolve_kernels
from outrider.workers.loading.lanes import load_lanes
from outrider.workers.loading.resolved_config import resolve_device, resolve_numerics
from outrider.workers.parallel import groups
from outrider.workers.parallel.collectives.group_collectives import GroupCollectives
from outrider.workers.parallel.collectives.turns import no_op
from outrider.workers.parallel.deep_ep import DeepEp
from outrider.workers.parallel.links.device_transport import DeviceTransport
from outrider.workers.parallel.links.transport import LinkBrokenError
from outrider.workers.parallel.shard import Shard
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.parallel.watchdog import Watchdog
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model.model_config import ModelConfig

CUDA = torch.device("cuda", 0)
SOON_S = 20.0


class FakeWork:
    """A collective in progress, and the arguments of its waits."""

    def __init__(self, done: bool = False) -> None:
        self.done, self.waits = done, list[tuple[Any, ...]]()

    def is_completed(self) -> bool:
        return self.done

    def wait(self, *args: Any) -> bool:
        self.waits.append(args)
        return True


class FakeContent:
    """A transport of packed bytes. `came` is what it receives; None: nothing arrives."""

    name = "a fake"

    def __init__(self, came: bytes | None = None) -> None:
        self.sent, self.came = list[bytes](), came

    def announce(self, timeout_s: float) -> None: ...

    def send(self, packed: bytes, hidden: Tensor, timeout_s: float) -> None:
        self.sent.append(packed)

    def flush(self, timeout_s: float) -> None: ...

    def receive(self, timeout_s: float | None) -> tuple[bytearray, Tensor]:
        if self.came is None:
            raise LinkBrokenError("nothing arrived")
        return bytearray(self.came), torch.empty(0, 0)

    def close(self) -> None: ...


def test_mixing_devices_is_an_error_as_on_a_gpu(pretend: Counts) -> None:
    with pytest.raises(DeviceMismatchError, match=r"cuda:0.*cpu"):
        torch.ones(3, device="cuda") + torch.ones(3)


def test_launches_syncs_and_copies_are_counted(pretend: Counts) -> None:
    x = torch.ones(4).to("cuda")
    (x * 2).view(2, 2).sum().item()

    assert sum(pretend.kinds.values()) == pretend.kinds["mul"] + pretend.kinds["sum"] == 2
    assert (len(pretend.syncs), len(pretend.copies)) == (1, 1)


def test_a_graph_runs_its_operations_again_over_the_same_memory(pretend: Counts) -> None:
    x, graph = torch.ones(3, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = (x + 1) * 2
    x.fill_(4)
    pretend.clear()
    graph.replay()

    assert y.tolist() == [10, 10, 10]
    assert pretend.kinds == {"graph": 1}


def test_what_a_device_cannot_capture_is_an_error(pretend: Counts) -> None:
    x = torch.ones(3, device="cuda")
    for forbidden in (x.tolist, lambda: x.to("cpu"), lambda: torch.ones(2).to("cuda"), x.nonzero):
        with pytest.raises(RuntimeError, match="captur"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            forbidden()


def test_each_rank_of_a_machine_has_a_device_of_its_own(pretend: Counts) -> None:
    config = EngineConfig(device="cuda")

    assert [resolve_device(config, rank).index for rank in range(3)] == [0, 1, 2]
    with pytest.raises(OutriderError, match="rank 8 of this machine needs a CUDA device of its own, and there are 8"):
        resolve_device(config, 8)


@pytest.mark.parametrize(
    ("capability", "hip", "message"),
    [
        ((8, 0), None, "need compute capability 9.0 or later (H100), and the device has 8.0"),
        ((9, 4), "6.4", "are checked for NVIDIA GPUs only"),
        ((9, 0), None, None),
        ((10, 0), None, None),
    ],
)
def test_the_kernels_run_on_gpus_that_they_are_compiled_for(
    pretend: Counts, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], hip: str | None, message: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    model = load_shape("deepseek-r1")
    found = partial(resolve_kernels, device=CUDA, dtype=torch.bfloat16, model=model)

    if message is None:
        assert found(EngineConfig(device="cuda")) == "triton"
    else:
        assert found(EngineConfig(device="cuda")) == "torch"
        with pytest.raises(OutriderError, match=re.escape(message)):
            found(EngineConfig(device="cuda", kernels="triton"))


def test_verification_for_study_drafts_on_a_gpu_too(pretend: Counts) -> None:
    settings = {"dtype": "float32", "max_model_len": 64, "max_num_seqs": 1, "kv_cache_memory_bytes": 1 << 24}
    with LLM("scout", device="cuda", verification="rejection", speculation=2, **settings) as llm:
        output = llm.generate([[5, 6, 7, 8]], SamplingParams(max_tokens=8, temperature=0.8, seed=1, ignore_eos=True))

    assert output[0].outputs[0].speculation.drafted > 0


def test_collectives_wait_without_a_timeout_and_the_watchdog_enforces_the_deadline() -> None:
    expired, reported = threading.Event(), list[str]()
    watchdog = Watchdog(lambda what: (reported.append(what), expired.set()), poll_interval_s=0.01)
    watchdog.watch(FakeWork(done=True), 0.0, "what is done")
    watchdog.watch(FakeWork(), math.inf, "what may take for ever, on another communicator")
    watchdog.watch(FakeWork(), 0.05, "what never ends")

    assert expired.wait(SOON_S)
    assert reported == ["what never ends"]


def test_a_collective_between_gpus_does_not_block_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    work = FakeWork(done=True)
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    monkeypatch.setattr(dist, "all_gather", lambda *args, **kwargs: work)
    watchdog = Watchdog(lambda what: None)
    GroupCollectives(None, "ranks 0..1", 5.0, watchdog).gather(torch.ones(2), "logits")
    watchdog.close()

    assert work.waits == [()]


@pytest.mark.parametrize("peers", [False, True])
def test_data_groups_with_peer_memory_switch_lanes_at_exchanges_of_the_stage(
    monkeypatch: pytest.MonkeyPatch, peers: bool
) -> None:
    """One group may add over peer memory while another, of more rows, adds over NCCL."""
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda group: group)
    monkeypatch.setattr(groups, "all_gather", lambda answer: [answer] * 4)
    monkeypatch.setattr(groups, "on_leave", lambda close: None)
    tensor, stage = GroupCollectives(2, "ranks 0..1", 5.0), GroupCollectives(4, "ranks 0..3", 5.0)
    memory: Any = object() if peers else None
    sharing = Sharing(shard=Shard(tensors=2, datas=2, spread=True), tensor=tensor, stage=stage, peers=memory)
    config = EngineConfig(tensor_parallel_size=2, data_parallel_size=2, expert_parallel_size=4)

    assert load_lanes(config, sharing, 0, "a", CUDA) is not None
    assert [each.on_launched is not no_op for each in (tensor, stage)] == [not peers, True]


def test_sending_states_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it did, two ranks that send to each other would deadlock."""
    work, groups = FakeWork(), list[Any]()
    monkeypatch.setattr(dist, "isend", lambda states, peer, group: (groups.append(group), work)[1])
    watchdog = Watchdog(lambda what: None)
    link = DeviceTransport(FakeContent(), "the direction's own", 1, torch.float32, torch.device("cpu"), watchdog)
    link.send(b"a round", torch.ones(2, 3), 60.0)
    watchdog.close()

    assert work.waits == []
    assert groups == ["the direction's own"]


def test_an_idle_rank_has_nothing_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The receive is enqueued after the packed bytes arrive: a kernel that waits for states would spin."""
    received = list[tuple[int, ...]]()
    monkeypatch.setattr(
        dist, "irecv", lambda states, peer, group: (received.append(tuple(states.shape)), FakeWork())[1]
    )
    watchdog = Watchdog(lambda what: None)
    idle = DeviceTransport(FakeContent(), None, 1, torch.float32, torch.device("cpu"), watchdog)
    with pytest.raises(LinkBrokenError):
        idle.receive(None)
    assert received == []

    sender = FakeContent()
    monkeypatch.setattr(dist, "isend", lambda states, peer, group: FakeWork())
    DeviceTransport(sender, None, 0, torch.float32, torch.device("cpu"), watchdog).send(b"it", torch.ones(2, 3), 60.0)
    busy = DeviceTransport(FakeContent(sender.sent[0]), None, 1, torch.float32, torch.device("cpu"), watchdog)
    data, _ = busy.receive(60.0)
    watchdog.close()
    assert (bytes(data), received) == (b"it", [(2, 3)])


def test_the_cache_leaves_room_for_the_largest_round(pretend: Counts) -> None:
    scout = ModelConfig.load(resolve_model("scout"))
    small, large = (round_bytes(EngineConfig(max_num_batched_tokens=rows), scout, Shard(), 2) for rows in (64, 2048))

    assert small < large
    assert free_bytes(CUDA, large) < free_bytes(CUDA, small) < free_bytes(CUDA)
    with pytest.raises(OutriderError, match="lower max_num_batched_tokens"):
        free_bytes(CUDA, 1 << 40)


def test_the_planner_gives_the_cache_what_the_engine_does(pretend: Counts) -> None:
    buffers = 3 * 10**8
    planned = StageMemory(
        weights={}, buffers=buffers, runtime=0, cache_per_token=1, device=FREE_BYTES,
        cache_share=Efficiency().cache_share,
    )  # fmt: skip

    assert planned.cache_tokens == pytest.approx(free_bytes(CUDA, buffers), abs=1)


def test_a_warning_says_why_exact_numerics_are_not_available(caplog: pytest.LogCaptureFixture) -> None:
    alone, shared = EngineConfig(), EngineConfig(tensor_parallel_size=2)

    assert resolve_numerics(alone, "triton", CUDA) == "exact"
    assert caplog.text == ""
    assert resolve_numerics(alone, "torch", CUDA) == "fast"
    assert "torch's own kernels on a GPU have no fixed order of sums" in caplog.text
    assert resolve_numerics(shared, "triton", CUDA) == "fast"
    assert "bits depend on their number" in caplog.text


class _LoneStage(GroupCollectives):
    """A group of two ranks, of which the other takes and sends nothing."""

    def __init__(self) -> None:
        self.rank, self.size, self.noted = 0, 2, list[int]()
        self.on_launched = lambda: None

    def note(self, purpose: str, given: int, seconds: float) -> None:
        self.noted.append(given)


class _Buffer:
    """DeepEP's buffer: dispatch returns the rows unchanged, and how many have each target."""

    def get_dispatch_layout(self, targets: Tensor, count: int) -> tuple[Any, ...]:
        one = torch.ones(1, dtype=torch.int32, device=targets.device)
        return one * len(targets), None, one, one.bool(), None

    def dispatch(self, rows: Tensor, **options: Any) -> tuple[Any, ...]:
        targets = options["topk_idx"]
        return rows, targets, options["topk_weights"], [int((inner(targets) >= 0).sum()), 0], (), self

    def current_stream_wait(self) -> None: ...


def test_dispatch_by_deep_ep_needs_no_host_sync(pretend: Counts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outrider.workers.parallel.deep_ep._index_type", lambda: torch.int64)
    stage = _LoneStage()
    dispatch = DeepEp(Sharing(shard=Shard(spread=True, datas=2), stage=stage), _Buffer(), 128, 4)
    x, slots = torch.randn(3, 128).to("cuda"), torch.tensor([[0], [1], [1]], device="cuda")
    pretend.clear()
    outputs = dispatch(x, slots, lambda rows, slots: rows)

    assert not pretend.syncs
    assert stage.noted == [3 * 128 * 4] * 2
    assert torch.equal(outputs.cpu(), x.cpu().unsqueeze(1))
