"""Pretend-CUDA: tensors that report device "cuda" and keep their values on the CPU, for machines without a GPU.

It finds operations over tensors of two devices (an error, as on a GPU), and counts kernel launches, host syncs and
copies between host and device, each by the source line that caused it. Graphs replay the captured operations over the
same memory, and capture fails on host syncs and copies, as on a GPU. It does not find races, and says nothing about
speed, rounding, or the inside of a kernel.

An operator of the `outrider` namespace counts as the number of kernels it launches (`kernels/gpu/ops.py`) and runs its
twin. Collectives run over gloo. `install` is for a process of its own; the fixture `pretend` (conftest.py) undoes it.
"""

import contextlib
import copy
import ctypes
import functools
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

DEVICES = 8
FREE_BYTES, TOTAL_BYTES = 2 * 10**9, 80 * 10**9
_PACKAGE = "/outrider/"
# Operations that launch no kernel: views, allocations, metadata.
_NO_LAUNCH = set[str]().union(
    ("view", "_unsafe_view", "_reshape_alias", "t", "transpose", "permute", "expand", "slice", "select", "narrow"),
    ("unsqueeze", "squeeze", "split", "split_with_sizes", "unbind", "chunk", "as_strided", "unfold", "diagonal"),
    ("detach", "alias", "lift_fresh", "empty", "empty_strided", "new_empty", "new_empty_strided", "empty_like"),
    ("resize_", "set_", "sym_size", "is_same_size"),
)
_READS = frozenset(("_local_scalar_dense", "is_nonzero", "equal", "item"))  # the host waits for a value
_SIZED_BY_VALUES = frozenset(  # the host waits for a size
    ("nonzero", "unique", "_unique2", "unique_consecutive", "unique_dim", "masked_select", "repeat_interleave")
)
_AMONG_DATA_GROUPS = ("gather_rows", "return_outputs")  # their last argument is the group; "" is this rank alone
_PINS = frozenset(("is_pinned", "pin_memory", "_pin_memory"))
_INDEXING = frozenset(("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"))


_LAUNCH = "launch"


@dataclass(slots=True)
class Counts:
    """Launches, syncs and copies since `clear`, by source line of the package."""

    launches: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)  # the same launches, by operation
    syncs: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)  # between host and device
    order: list[str] = field(default_factory=list)  # "launch", or what was copied, one after another

    @property
    def copies_inside(self) -> list[str]:
        """Copies after the first launch and before the last."""
        launches = [place for place, each in enumerate(self.order) if each == _LAUNCH] or [0]
        return [each for each in self.order[launches[0] : launches[-1]] if each != _LAUNCH]

    def launch(self, kind: str, site: str, launches: int = 1) -> None:
        if _capturing() is not None:
            return
        self.launches[site] += launches
        self.kinds[kind] += launches
        self.order.append(_LAUNCH)

    def copy(self, what: str) -> None:
        if _capturing() is not None:
            raise RuntimeError(f"a copy between host and device cannot be captured: {what}")
        self.copies[what] += 1
        self.order.append(what)

    def sync(self, what: str) -> None:
        if _capturing() is not None:
            raise RuntimeError(f"the host cannot wait for the device during capture: {what}")
        self.syncs[what] += 1

    def clear(self) -> None:
        for each in (self.launches, self.kinds, self.syncs, self.copies, self.order):
            each.clear()

    def taken(self) -> "Counts":
        """A copy of the counts so far; then clears them."""
        taken = copy.deepcopy(self)
        self.clear()
        return taken


COUNTS = Counts()


_current = threading.local()


def _capturing() -> "Graph | None":
    """The graph that this thread captures, if any."""
    return getattr(_current, "graph", None)


class Graph:
    """torch.cuda.CUDAGraph: records operations over pretended tensors, and runs them again over the same memory."""

    def __init__(self) -> None:
        self._recorded: list[tuple[Callable[[], Any], Any]] = []
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def record(self, compute: Callable[[], Any], out: Any) -> None:
        self._recorded.append((compute, out))

    def keep(self, written: torch.Tensor) -> None:
        """Keeps the values of a tensor that an operation is about to change."""
        self._before.append((written, written.clone()))

    def replay(self) -> None:
        COUNTS.launch("graph", _site())
        with _disable_current_modes():
            for compute, out in self._recorded:
                for old, new in zip(_tensors(out), _tensors(compute()), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)

    @contextlib.contextmanager
    def capturing(self, capture_error_mode: str = "global") -> Iterator[None]:
        """Captured operations do run here, for the shapes of their results; so what they changed is changed back."""
        _current.graph = self
        try:
            yield
        finally:
            _current.graph = None
            with _disable_current_modes():
                while self._before:
                    written, values = self._before.pop()
                    written.copy_(values)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [each for each in tree_flatten(value)[0] if isinstance(each, torch.Tensor)]


class DeviceMismatchError(RuntimeError):
    """An operation over tensors of different devices."""


def _site() -> str:
    """The innermost source line of the package on the stack."""
    frame = sys._getframe(2)
    while frame is not None:
        if _PACKAGE in frame.f_code.co_filename:
            return f"{frame.f_code.co_filename.rpartition(_PACKAGE)[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def _on_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class PretendTensor(torch.Tensor):
    """A tensor on `cuda:index`, whose values are in `inner`."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: type, inner: torch.Tensor, device: torch.device) -> "PretendTensor":
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=device, requires_grad=False,
        )  # fmt: skip
        made.inner = inner
        return made

    def contiguous(self, memory_format: Any = torch.contiguous_format) -> torch.Tensor:
        if self.inner.is_contiguous(memory_format=memory_format):
            return self
        return _run(torch.ops.aten.clone.default, (self,), {"memory_format": memory_format})

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and isinstance(args[0], torch.Tensor):
            device, dtype = args[0].device, args[0].dtype
        else:
            kwargs.pop("copy", None)
            device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        wanted: dict[str, Any] = {}
        if device is not None and device.type != "cuda":
            wanted["device"] = device
        if dtype is not None and dtype != self.dtype:
            wanted["dtype"] = dtype
        return _run(torch.ops.aten._to_copy.default, (self,), wanted) if wanted else self

    def cpu(self) -> torch.Tensor:
        return self.to("cpu")

    def float(self) -> torch.Tensor:
        return self.to(torch.float32)

    def double(self) -> torch.Tensor:
        return self.to(torch.float64)

    def long(self) -> torch.Tensor:
        return self.to(torch.int64)

    def int(self) -> torch.Tensor:
        return self.to(torch.int32)

    def bool(self) -> torch.Tensor:
        return self.to(torch.bool)

    def item(self) -> Any:
        return _run(torch.ops.aten._local_scalar_dense.default, (self,), {})

    def __bool__(self) -> Any:
        return bool(self.item())

    def __int__(self) -> Any:
        return int(self.item())

    def __float__(self) -> Any:
        return float(self.item())

    def __index__(self) -> Any:
        return int(self.item())

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: Any = False) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy: at {_site()}")

    def data_ptr(self) -> Any:
        raise RuntimeError(f"a pretended tensor has no address: at {_site()}")

    def __repr__(self, **kwargs: Any) -> str:
        return f"PretendTensor({tuple(self.inner.shape)}, {self.inner.dtype}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def inner(value: Any) -> Any:
    """The values of a pretended tensor; other values unchanged."""
    return value.inner if isinstance(value, PretendTensor) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation: checked, counted, computed on the CPU."""
    name, site = func.overloadpacket.__name__, _site()
    flat, _ = tree_flatten((args, kwargs))
    pretended = [each for each in flat if isinstance(each, PretendTensor)]
    wanted = kwargs.get("device")
    device = torch.device(wanted) if wanted is not None else pretended[0].device if pretended else None
    if device is not None and device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    on_cpu = {**kwargs, "device": torch.device("cpu")} if wanted is not None else kwargs
    compute = functools.partial(func, *tree_map(inner, args), **tree_map(inner, on_cpu))
    if name in ("_to_copy", "_copy_from"):
        out = compute()
        copied = _copied(out, name, site, bool(pretended), device)
        _record(compute, out)
        return copied
    if not pretended and name in _PINS:  # there is no device to pin memory for
        return args[0] if name != "is_pinned" else False
    if not pretended:
        return compute() if device is None or device.type != "cuda" else _wrapped(compute(), device)
    if name in _READS:
        COUNTS.sync(f"{name} {site}")
        return compute()
    _check_devices(func, name, site, args, flat)
    if name in _SIZED_BY_VALUES:
        COUNTS.sync(f"{name} {site}")
    out = compute() if _capturing() is None else _run_captured(func, name, args, kwargs, compute)
    _count(func, name, site)
    if name not in _NO_LAUNCH:
        _record(compute, out)
    if name.endswith("_") and not name.startswith("_") and args and isinstance(args[0], PretendTensor):
        return args[0]
    if isinstance(kwargs.get("out"), PretendTensor):
        return kwargs["out"]
    return tree_map(lambda each: _wrapped(each, device), out)


def _run_captured(func: Any, name: str, args: Any, kwargs: dict[str, Any], compute: Callable[[], Any]) -> Any:
    """Exchanges nothing with other data groups, since they need not capture at the same time."""
    for n, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            _current.graph.keep(inner(args[n] if n < len(args) else kwargs[argument.name]))
    return func(*tree_map(inner, [*args[:-1], ""])) if name in _AMONG_DATA_GROUPS else compute()


def _record(compute: Callable[[], Any], out: Any) -> None:
    graph = _capturing()
    if graph is not None:
        graph.record(compute, out)


def _count(func: Any, name: str, site: str) -> None:
    if name in _NO_LAUNCH:
        return
    launches = 1
    if func.namespace == "outrider":
        from outrider.kernels.gpu.ops import LAUNCHES

        launches = LAUNCHES[name]
    COUNTS.launch(name, site, launches)


def _copied(out: torch.Tensor, name: str, site: str, from_gpu: bool, device: torch.device | None) -> torch.Tensor:
    """A copy's result on `device`. Counts copies between host and device."""
    to_gpu = device is not None and device.type == "cuda"
    if from_gpu and not to_gpu:
        COUNTS.copy(f"to host {site}")
        COUNTS.sync(f"copy to host {site}")
    elif to_gpu and not from_gpu:
        COUNTS.copy(f"to device {site}")
    elif to_gpu:
        COUNTS.launch(name, site)
    return _wrapped(out, device) if to_gpu else out


def _check_devices(func: Any, name: str, site: str, args: Any, flat: list[Any]) -> None:
    """Raises DeviceMismatchError where torch would fail on a GPU; counts the copies that torch makes implicitly."""
    tensors = [each for each in flat if isinstance(each, torch.Tensor)]
    if len({each.device for each in tensors}) == 1:
        return
    for each in tensors:
        if each.device == args[0].device if isinstance(args[0], torch.Tensor) else False:
            continue
        if name == "copy_":
            host_to_device = args[0].device.type == "cuda"
            COUNTS.copy(f"{'to device' if host_to_device else 'to host'} {site}")
            if not host_to_device:
                COUNTS.sync(f"copy to host {site}")
        elif name in _INDEXING and each.device.type == "cpu" and each is not args[0]:
            COUNTS.copy(f"to device {site}")
        elif each.dim() or each.device.type != "cpu" or name.startswith("index_"):
            described = [f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors]
            if len({tensor.device for tensor in tensors if tensor.dim() or tensor.device.type != "cpu"}) > 1:
                raise DeviceMismatchError(f"{func} at {site}: {', '.join(described)}")


def _wrapped(value: Any, device: torch.device | None) -> Any:
    if not isinstance(value, torch.Tensor) or isinstance(value, PretendTensor) or device is None:
        return value
    return PretendTensor(value, device)


class _Mode(TorchDispatchMode):
    """Routes every operation, tensor factories included, through `_run`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@functools.cache
def _load_guard() -> None:
    """Compiles and loads guard.cpp, once per torch version."""
    target = Path(tempfile.gettempdir()) / f"outrider-pretend-guard-{torch.__version__}.so"
    if not target.exists():
        root = Path(torch.__file__).parent
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / target.name
            command = ["g++", "-shared", "-fPIC", "-std=c++20", f"-I{root / 'include'}", f"-L{root / 'lib'}"]
            source = str(Path(__file__).with_name("guard.cpp"))
            subprocess.run([*command, source, "-lc10", "-o", str(made)], check=True)
            target.write_bytes(made.read_bytes())
    ctypes.CDLL(str(target))


def _tensor(original: Callable[..., torch.Tensor], data: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """torch.tensor, which creates values on the host and copies them."""
    device = kwargs.pop("device", None)
    made = original(data, *args, **kwargs)
    if not _on_gpu(device):
        return made
    COUNTS.copy(f"to device {_site()}")
    index = torch.device(device).index
    return PretendTensor(made, torch.device("cuda", torch.cuda.current_device() if index is None else index))


class _Stream:
    """A stream or an event. Everything runs in order here."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: 0.0 if name == "elapsed_time" else True if name == "query" else self

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def synchronize(self) -> None:
        COUNTS.sync(f"synchronize {_site()}")


class _PeerBuffers:
    """Symmetric memory of a group. Twins of its kernels use torch.distributed instead."""

    def __init__(self, name: str) -> None:
        group = dist.distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined]
        self.buffer_ptrs = [0] * group.size()


def _patches() -> dict[tuple[Any, str], Any]:
    """Replacements of torch's functions."""

    def synchronize(device: Any = None) -> None:
        COUNTS.sync(f"synchronize {_site()}")

    def set_device(device: Any) -> None:
        _current.index = torch.device("cuda", device).index if isinstance(device, int) else torch.device(device).index

    def run(thread: threading.Thread) -> None:
        with _Mode():
            plain_run(thread)

    plain_run = threading.Thread.run
    cuda = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: DEVICES,
        "current_device": lambda: getattr(_current, "index", None) or 0,
        "set_device": set_device,
        "synchronize": synchronize,
        "mem_get_info": lambda device=None: (FREE_BYTES, TOTAL_BYTES),
        "get_device_name": lambda device=None: "pretended",
        "get_device_capability": lambda device=None: (9, 0),
        "current_stream": lambda device=None: _Stream(),
        "stream": lambda stream: _Stream(),
        "Stream": lambda *args, **kwargs: _Stream(),
        "Event": lambda *args, **kwargs: _Stream(),
        "CUDAGraph": Graph,
        "graph": Graph.capturing,
    }

    def enter(mode: torch.inference_mode) -> None:
        """Wrapping tensors cannot be inference tensors."""
        mode._without_gradients = torch.no_grad()  # type: ignore[attr-defined]
        mode._without_gradients.__enter__()  # type: ignore[attr-defined]

    def leave(mode: torch.inference_mode, *error: Any) -> None:
        mode._without_gradients.__exit__(*error)  # type: ignore[attr-defined]

    return {
        (torch.inference_mode, "__enter__"): enter,
        (torch.inference_mode, "__exit__"): leave,
        (torch.version, "cuda"): "pretended",
        (symmetric_memory, "empty"): torch.empty,
        (symmetric_memory, "rendezvous"): lambda memory, name: _PeerBuffers(name),
        (torch, "tensor"): functools.partial(_tensor, torch.tensor),
        (threading.Thread, "run"): run,
        **{(torch.cuda, name): value for name, value in cuda.items()},
        **{(dist, name): _over_gloo(getattr(dist, name)) for name in _COLLECTIVES},
    }


_COLLECTIVES = (
    "init_process_group", "new_group", "all_reduce", "all_gather", "gather", "all_to_all_single", "isend", "irecv",
    "broadcast", "barrier", "all_gather_into_tensor",
)  # fmt: skip


def _over_gloo(collective: Callable[..., Any]) -> Callable[..., Any]:
    """The collective over gloo, over the values of pretended tensors."""

    def call(*args: Any, **kwargs: Any) -> Any:
        flat, _ = tree_flatten((args, kwargs))
        if any(isinstance(each, PretendTensor) for each in flat):
            COUNTS.launch(collective.__name__, _site())
        values = tree_map(lambda v: "gloo" if isinstance(v, str) and "nccl" in v else inner(v), (args, kwargs))
        return collective(*values[0], **values[1])

    return call


@contextlib.contextmanager
def pretending() -> Iterator[Counts]:
    """Pretends CUDA in this process, inside the context."""
    _load_guard()
    patches = _patches()
    plain = {(owner, name): getattr(owner, name) for owner, name in patches}
    for (owner, name), value in patches.items():
        setattr(owner, name, value)
    COUNTS.clear()
    try:
        with _Mode():
            yield COUNTS
    finally:
        for (owner, name), value in plain.items():
            setattr(owner, name, value)


def install() -> None:
    """Pretends CUDA in this process until it ends."""
    pretending_for_good.enter_context(pretending())


pretending_for_good = contextlib.ExitStack()
