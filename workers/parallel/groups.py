"""Joins a rank to its replica's process group; collectives over the whole replica."""

import re
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from outrider.workers.types.errors import EngineStoppedError

_JOIN_TIMEOUT = timedelta(seconds=120)
_leaving: list[Callable[[], None]] = []  # called when this rank leaves its group

T = TypeVar("T")


def join(rank: int, world_size: int, address: str, port: int, device: torch.device) -> None:
    """Joins the other ranks at `address:port`, where rank 0 listens. EngineStoppedError if they do not join in time.

    The group itself has no timeout, since an idle rank waits for work indefinitely. Deadlines are set by the stage
    links and by collectives.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"  # gloo for tensors on the host
    try:
        tcp_store = dist.TCPStore  # type: ignore[attr-defined]  # torch's stubs do not declare it
        listener = _listen(address, port) if rank == 0 else None
        store = tcp_store(
            address, port, world_size, is_master=rank == 0, timeout=_JOIN_TIMEOUT, master_listen_fd=listener
        )
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(days=365))
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EngineStoppedError(
            f"rank {rank} could not join the other ranks at {address}:{port} ({reason})"
        ) from error


def _listen(address: str, port: int) -> int:
    """The descriptor of a socket that listens on `address` only; torch's own would listen on all addresses."""
    family, kind, protocol, _, at = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(at)
    listener.listen(1024)
    return listener.detach()


def on_leave(close: Callable[[], None]) -> None:
    """Makes `leave` call `close`, e.g. for connections that exist beside the process group."""
    _leaving.append(close)


def leave() -> None:
    while _leaving:
        _leaving.pop()()
    if dist.is_initialized():
        dist.destroy_process_group()


def all_reduce_min(value: int) -> int:
    """The smallest of all ranks' `value`."""
    if not dist.is_initialized():
        return value
    tensor = torch.tensor([value], dtype=torch.int64)
    dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return int(tensor.item())


def all_gather(answer: T) -> list[T]:
    """All ranks' `answer`, by rank. Collective; for plain Python values only."""
    answers: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, answer)
    return cast(list[T], answers)


def first_clause(error: Exception) -> str:
    """The reason from an error of torch.distributed, without its source file and its advice."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return re.sub(r"^\[[^\]]*\.(cc|cpp|h):\d+\]\s*", "", line).split(". ")[0]
