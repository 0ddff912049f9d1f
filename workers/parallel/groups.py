"""Joins a rank to its replica's process group, and asks the whole group."""

import socket
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from outrider.workers.types.errors import EngineStoppedError

_JOIN_TIMEOUT = timedelta(seconds=120)
_leaving: list[Callable[[], None]] = []  # what this rank does besides when it leaves its group

T = TypeVar("T")


def join(rank: int, world_size: int, address: str, port: int, device: torch.device) -> None:
    """Meets the other ranks at `address:port` (rank 0 listens there). EngineStoppedError if they do not come.

    The group itself has no deadline: an idle rank waits for work for as long as there is none. Deadlines are the
    links' business.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"  # what is on the host goes over gloo
    try:
        tcp_store = dist.TCPStore  # type: ignore[attr-defined]  # torch exports it without saying so
        listener = _listen(address, port) if rank == 0 else None
        store = tcp_store(
            address, port, world_size, is_master=rank == 0, timeout=_JOIN_TIMEOUT, master_listen_fd=listener
        )
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(days=365))
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EngineStoppedError(f"rank {rank} could not meet the others at {address}:{port} ({reason})") from error


def _listen(address: str, port: int) -> int:
    """A socket's descriptor: by itself torch would listen on all of the machine's addresses."""
    family, kind, protocol, _, at = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(at)
    listener.listen(1024)
    return listener.detach()


def on_leave(close: Callable[[], None]) -> None:
    """Has `leave` call `close`: for connections that stand beside the group and end with it."""
    _leaving.append(close)


def leave() -> None:
    while _leaving:
        _leaving.pop()()
    if dist.is_initialized():
        dist.destroy_process_group()


def agree_on_minimum(value: int) -> int:
    """The smallest of every rank's `value`."""
    if not dist.is_initialized():
        return value
    tensor = torch.tensor([value], dtype=torch.int64)
    dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return int(tensor.item())


def ask_all(answer: T) -> list[T]:
    """Every rank's `answer`, by rank; each must give one. Plain values only."""
    answers: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, answer)
    return cast(list[T], answers)
