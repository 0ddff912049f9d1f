"""Ranks that share memory as GPUs do over NVLink, each a process of its own, for kernels in Triton's interpreter.

A rank's memory is a file that every process maps, each at addresses of its own. Kernels wait for each other in earnest.
"""

import os
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outrider.workers.parallel.collectives.peer_memory import Area, OpenArea, PeerAreas


def areas_of(folder: Path, ranks: int, areas: list[Area]) -> PeerAreas:
    """A process's view of the areas of all ranks, in files of `folder`."""
    opened = []
    for number, area in enumerate(areas):
        data, flags = (
            [_mapped(folder / f"{name}-{number}-{each}", 2 * area.rows * size) for each in range(ranks)]
            for name, size in (("data", area.row_bytes), ("flags", 4 * area.ranks))
        )
        addresses = torch.tensor([[part.data_ptr() for part in parts] for parts in (data, flags)])
        opened.append(OpenArea(addresses, torch.zeros(area.rows, dtype=torch.int32), area.row_bytes))
        _KEPT.extend(data + flags)
    return PeerAreas(areas=tuple(opened), group="")


def on_processes(ranks: int, work: Callable[..., Any], *arguments: Any, timeout_s: float = 120.0) -> list[Any]:
    """What work(rank, *arguments) returns in each process. AssertionError with a rank's traceback if one failed."""
    context = get_context("spawn")
    answers = context.Queue()
    started = [context.Process(target=_run, args=(answers, rank, work, arguments)) for rank in range(ranks)]
    for process in started:
        process.start()
    try:
        found = dict(answers.get(timeout=timeout_s) for _ in started)
    finally:
        for process in started:
            process.kill()
            process.join()
    failed = [each for each in found.values() if isinstance(each, _Failed)]
    assert not failed, failed[0].text
    return [found[rank] for rank in range(ranks)]


class _Failed:
    def __init__(self, text: str) -> None:
        self.text = text


def _run(answers: Any, rank: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        answers.put((rank, work(rank, *arguments)))
    except BaseException:
        answers.put((rank, _Failed(traceback.format_exc())))


_KEPT: list[Tensor] = []  # the memory must outlive its addresses


def _mapped(file: Path, size: int) -> Tensor:
    return torch.from_file(os.fspath(file), shared=True, size=size, dtype=torch.uint8)
