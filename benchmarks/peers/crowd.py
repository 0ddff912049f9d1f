"""How much of the machine others used meanwhile: a race on a busy machine measures the crowd."""

import time
from dataclasses import dataclass
from typing import Self

import psutil


@dataclass(frozen=True, slots=True)
class Moment:
    """Processor seconds up to now: the whole machine's, and those of one process with its children."""

    time: float
    machine: float
    own: float
    processors: int

    @classmethod
    def now(cls, pid: int) -> Self:
        whole = psutil.cpu_times()
        root = psutil.Process(pid)
        own = [process.cpu_times() for process in (root, *root.children(recursive=True))]
        return cls(
            time=time.perf_counter(),
            machine=whole.user + whole.nice + whole.system + whole.irq + whole.softirq + whole.steal,
            own=sum(times.user + times.system for times in own),
            processors=psutil.cpu_count() or 1,
        )


def share_of_others(began: Moment, ended: Moment) -> float:
    """0..1 of the machine's processor time; the system counts in steps of 10 ms."""
    others = (ended.machine - began.machine) - (ended.own - began.own)
    return max(0.0, others) / ((ended.time - began.time) * began.processors)
