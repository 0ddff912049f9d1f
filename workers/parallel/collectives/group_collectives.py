"""Collectives over torch.distributed: gloo between CPUs, NCCL between GPUs."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from outrider.workers.parallel.collectives.collectives import ExchangeBrokenError, as_rows_of_bytes
from outrider.workers.parallel.collectives.traffic import Traffic
from outrider.workers.parallel.collectives.turns import no_op
from outrider.workers.parallel.groups import first_clause
from outrider.workers.parallel.watchdog import Watchdog


class GroupCollectives:
    """One process group. Implements Collectives. Data is sent as bytes, so every dtype is supported.

    `where` names the group in errors, e.g. "ranks 0..3". `on_launched` is called after each collective was started,
    and its time is not counted as the collective's. With a `watchdog` (on GPUs) the device waits for other ranks and
    the host does not.
    """

    on_launched: Callable[[], None]

    def __init__(self, group: Any, where: str, timeout_s: float, watchdog: Watchdog | None = None) -> None:
        self.name = "gloo" if watchdog is None else "nccl"
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.process_group = group
        self.on_launched = no_op
        self._where, self._timeout_s, self._watchdog = where, timeout_s, watchdog
        self._traffic: defaultdict[str, Traffic] = defaultdict(Traffic)

    @property
    def traffic(self) -> Mapping[str, Traffic]:
        return self._traffic

    def gather(self, part: Tensor, purpose: str, root: int | None = None) -> Tensor:
        mine = as_rows_of_bytes(part.unsqueeze(0))
        here = root is None or root == self.rank
        out = mine.new_empty(self.size if here else 0, mine.shape[1])
        if not mine.shape[1]:
            return part.new_empty(out.shape[0], *part.shape)
        parts = list(torch.split(out, 1)) if here else None
        self._do(purpose, mine.numel(), lambda: self._start_gather(mine, parts, root))
        return out.view(part.dtype).view(out.shape[0], *part.shape)

    def add(self, part: Tensor, purpose: str) -> Tensor:
        """On GPUs in place and in the parts' own type, on CPUs in float32."""
        total = part.contiguous() if part.is_cuda else part.float().clone(memory_format=torch.contiguous_format)
        given = total.numel() * total.element_size()
        self._do(purpose, given, lambda: dist.all_reduce(total, group=self.process_group, async_op=True))
        return total.to(part.dtype)

    def exchange(self, sent: Tensor, sent_rows: Sequence[int], received_rows: Sequence[int], purpose: str) -> Tensor:
        mine = as_rows_of_bytes(sent)
        out = mine.new_empty(sum(received_rows), mine.shape[1])
        splits = list(received_rows), list(sent_rows)
        given = (len(mine) - sent_rows[self.rank]) * mine.shape[1]
        self._do(purpose, given, lambda: dist.all_to_all_single(out, mine, *splits, self.process_group, async_op=True))
        return out.view(sent.dtype).view(out.shape[0], *sent.shape[1:])

    def note(self, purpose: str, given: int, seconds: float) -> None:
        """Counts one collective of `given` sent bytes. DeepEP also calls it, for its own transfers."""
        self._traffic[purpose] += Traffic(1, given, seconds)

    def close(self) -> None:
        """Does nothing: `groups.leave` destroys all process groups of the rank."""

    def _start_gather(self, mine: Tensor, parts: list[Tensor] | None, root: int | None) -> Any:
        if root is None:
            return dist.all_gather(parts, mine, self.process_group, async_op=True)
        return dist.gather(mine, parts, group=self.process_group, group_dst=root, async_op=True)

    def _do(self, purpose: str, given: int, start: Any) -> None:
        began = time.perf_counter()
        with self._naming(purpose):
            work = start()
        started = time.perf_counter()
        self.on_launched()
        back = time.perf_counter()
        with self._naming(purpose):
            self._wait(work, purpose)
        self.note(purpose, given, time.perf_counter() - back + started - began)

    def _wait(self, work: Any, purpose: str) -> None:
        if self._watchdog is not None:
            what = f"the exchange of {purpose} with {self._where} took more than {self._timeout_s:g} s"
            self._watchdog.watch(work, self._timeout_s, what)
            work.wait()
        elif not work.wait(timedelta(seconds=self._timeout_s)):
            raise RuntimeError(f"not within {self._timeout_s:g} s")

    @contextlib.contextmanager
    def _naming(self, purpose: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ExchangeBrokenError(
                f"a rank of {self._where} is gone or late: the exchange of {purpose} failed ({first_clause(error)})"
            ) from error


def new_group(ranks: Sequence[int]) -> Any:
    """A process group of some of the ranks. Collective: every rank of the replica must call it, in the same order."""
    return dist.new_group(list(ranks), timeout=timedelta(days=365))
