"""What happens to a cluster, and when: pure data, the same for the same seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Fault(Enum):
    """What is done to one process, or to one way between two."""

    RANK_KILL = "rank KILL"
    RANK_STOP = "rank STOP"
    LEADER_KILL = "leader KILL"
    LEADER_STOP = "leader STOP"
    ENGINE_HANG = "engine thread hung"
    RANK_HANG = "rank hung"
    GATEWAY_KILL = "gateway KILL"
    GATEWAY_STOP = "gateway STOP"
    GATEWAY_DRAIN = "gateway drain"
    GATEWAY_DEAF = "no way to the gateway"
    GATEWAY_MUTE = "no way from the gateway"
    REPLICA_DRAIN = "replica drain"
    CONTROLLER_KILL = "controller KILL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """One fault in the middle of many streams."""

    fault: Fault
    target: int  # which replica, or which gateway
    after: float  # once the streams have heard this share of all their tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """Streams that begin together, and what happens until the last of them has ended."""

    number: int
    streams: int
    first: int  # of the questions, which are asked in turn
    blows: tuple[Blow, ...]

    @property
    def cuts_wires(self) -> bool:
        return any(one.fault in (Fault.GATEWAY_DEAF, Fault.GATEWAY_MUTE) for one in self.blows)

    def __str__(self) -> str:
        blows = ", then ".join(f"{one.fault.value} of {one.target} after {one.after:.0%}" for one in self.blows)
        return f"episode {self.number}: {self.streams} streams, {blows}"


def schedule(
    seed: int, episodes: int, faults: Sequence[Fault], streams: Sequence[int], pairs: float = 0.2
) -> list[Episode]:
    """Every fault meets every number of streams equally often; `pairs`: the share of episodes with two faults."""
    rng = random.Random(seed)
    grid = [(fault, count) for fault in faults for count in streams]
    planned: list[Episode] = []
    while len(planned) < episodes:
        rng.shuffle(grid)
        for fault, count in grid[: episodes - len(planned)]:
            kinds = [fault] + ([rng.choice(faults)] if rng.random() < pairs else [])
            shares = sorted(rng.uniform(0.02, 0.8) for _ in kinds)
            blows = [
                Blow(fault=kind, target=rng.randrange(2), after=round(share, 3))
                for kind, share in zip(kinds, shares, strict=True)
            ]
            planned.append(Episode(number=len(planned), streams=count, first=rng.randrange(10_000), blows=tuple(blows)))
    return planned
