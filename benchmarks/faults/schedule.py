"""Which faults are injected, and when. Pure data; the same seed gives the same schedule."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Fault(Enum):
    """A fault of one process, or of one direction between two processes or machines."""

    RANK_KILL = "rank KILL"
    RANK_STOP = "rank STOP"
    LEADER_KILL = "leader KILL"
    LEADER_STOP = "leader STOP"
    ENGINE_HANG = "engine thread hung"
    RANK_HANG = "rank hung"
    GATEWAY_KILL = "gateway KILL"
    GATEWAY_STOP = "gateway STOP"
    GATEWAY_DRAIN = "gateway drain"
    GATEWAY_INBOUND_CUT = "no way to the gateway"
    GATEWAY_OUTBOUND_CUT = "no way from the gateway"
    REPLICA_DRAIN = "replica drain"
    CONTROLLER_KILL = "controller KILL"
    NODE_BLACK_HOLE = "node black-holed"
    GATEWAY_TO_LEADER_CUT = "no way from a gateway to a leader"
    LEADER_TO_GATEWAY_CUT = "no way from a leader to a gateway"
    CONTROLLER_TO_LEADER_CUT = "no way from the controller to a leader"
    LEADER_TO_CONTROLLER_CUT = "no way from a leader to the controller"
    LEADER_TO_RANK_CUT = "no way from a leader to the next rank"
    RANK_TO_LEADER_CUT = "no way from a rank to its leader"
    GCS_KILL = "GCS KILL"


NETWORK_FAULTS = (
    Fault.NODE_BLACK_HOLE,
    Fault.GATEWAY_TO_LEADER_CUT,
    Fault.LEADER_TO_GATEWAY_CUT,
    Fault.CONTROLLER_TO_LEADER_CUT,
    Fault.LEADER_TO_CONTROLLER_CUT,
    Fault.LEADER_TO_RANK_CUT,
    Fault.RANK_TO_LEADER_CUT,
    Fault.GCS_KILL,
)  # they need nodes of their own: chaos.py --nodes
FAULTS = tuple(fault for fault in Fault if fault not in NETWORK_FAULTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """One planned fault."""

    fault: Fault
    target: int  # index of the replica or gateway, modulo their number
    after: float  # the share of the episode's tokens that have been received when the fault is injected


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """Streams that start together, and the faults injected before the last of them ends."""

    number: int
    streams: int
    first_request: int  # index of the first stream's request; the others follow it
    injections: tuple[Injection, ...]

    @property
    def needs_proxies(self) -> bool:
        """Whether clients must connect through the gateways' proxies."""
        return any(one.fault in (Fault.GATEWAY_INBOUND_CUT, Fault.GATEWAY_OUTBOUND_CUT) for one in self.injections)

    def __str__(self) -> str:
        faults = ", then ".join(f"{one.fault.value} of {one.target} after {one.after:.0%}" for one in self.injections)
        return f"episode {self.number}: {self.streams} streams, {faults}"


def schedule(
    seed: int, episodes: int, faults: Sequence[Fault], streams: Sequence[int], *, pairs: float = 0.2, in_a_row: int = 1
) -> list[Episode]:
    """Combines every fault with every number of streams equally often. `pairs`: share of episodes with two faults;
    `in_a_row`: how often an episode's first fault is injected."""
    rng = random.Random(seed)
    grid = [(fault, count) for fault in faults for count in streams]
    planned: list[Episode] = []
    while len(planned) < episodes:
        rng.shuffle(grid)
        for fault, count in grid[: episodes - len(planned)]:
            kinds = [fault] * in_a_row + ([rng.choice(faults)] if rng.random() < pairs else [])
            shares = sorted(rng.uniform(0.02, 0.8) for _ in kinds)
            injections = [
                Injection(fault=kind, target=rng.randrange(2), after=round(share, 3))
                for kind, share in zip(kinds, shares, strict=True)
            ]
            first = rng.randrange(10_000)
            planned.append(
                Episode(number=len(planned), streams=count, first_request=first, injections=tuple(injections))
            )
    return planned
