"""How many replicas a load needs. A pure policy: load in; number of replicas and the reason out.

Up at once, down only after the load has been low for a while; whole replicas only, and never fewer than what runs
needs. Which replica leaves is decided in roster.py; that it drains first, in reconcile.py.
"""

import math
from dataclasses import dataclass, replace

from outrider.cluster.api.load_report import Load

FORGOTTEN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalePolicy:
    """`headroom` is the spare share for a rise in load: 0.2 means a fifth more than the load."""

    min_replicas: int
    max_replicas: int
    target_tokens: int  # in flight on one replica
    target_wait_s: float  # longest acceptable wait for a first token
    headroom: float
    cooldown_s: float  # how long the load must be low before a replica leaves

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas:
            most = f"autoscale_max_replicas ({self.max_replicas})"
            raise ValueError(f"autoscale_min_replicas must be 0..{most}, got {self.min_replicas}")


class WaitingLoads:
    """What waits at gateways: the latest that each has reported. One that is silent for FORGOTTEN_S counts no more."""

    def __init__(self) -> None:
        self._reported: dict[str, tuple[float, Load]] = {}  # when, and what

    def report(self, gateway: str, load: Load, now: float) -> None:
        self._reported[gateway] = (now, load)
        self._reported = {name: one for name, one in self._reported.items() if now - one[0] < FORGOTTEN_S}

    def total(self, now: float) -> Load:
        return Load.total(load for at, load in self._reported.values() if now - at < FORGOTTEN_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The number of replicas, and since when the load has needed fewer."""

    desired: int
    ready: int
    low_since: float | None = None
    low_peak: int = 0  # the most that the load has needed since then


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`reason` is empty if nothing changes. Pass `scale` to the next decision."""

    scale: Scale
    reason: str = ""


def decide(policy: AutoscalePolicy, load: Load, scale: Scale, *, seats: int, now: float) -> Decision:
    """`seats`: sequences that one replica runs at once. `now` is from any monotonic clock."""
    wanted, reason = _wanted(policy, load, scale)
    wanted = min(policy.max_replicas, max(policy.min_replicas, _needed_by_running(load, seats), wanted))
    if wanted > scale.desired:
        return _to(wanted, scale, reason)
    if wanted == scale.desired:
        return Decision(scale=replace(scale, low_since=None, low_peak=0))
    since = now if scale.low_since is None else scale.low_since
    lowered = replace(scale, low_since=since, low_peak=max(scale.low_peak, wanted))
    if now - since < policy.cooldown_s:
        return Decision(scale=lowered)
    return _to(lowered.low_peak, scale, f"{reason} for {now - since:.0f} s")


def _wanted(policy: AutoscalePolicy, load: Load, scale: Scale) -> tuple[int, str]:
    """By tokens; one more than the present number if requests wait too long while all replicas are ready."""
    by_tokens = math.ceil(load.tokens * (1 + policy.headroom) / policy.target_tokens)
    waits_long = load.oldest_wait_s > policy.target_wait_s
    if waits_long and scale.desired >= by_tokens:
        more = 1 if scale.ready >= scale.desired else 0
        return scale.desired + more, f"a request has waited {load.oldest_wait_s:.1f} s for its first token"
    return by_tokens, f"{load.tokens} tokens in flight want {by_tokens} of {policy.target_tokens} tokens each"


def _needed_by_running(load: Load, seats: int) -> int:
    return math.ceil(load.sequences / seats)


def _to(replicas: int, scale: Scale, reason: str) -> Decision:
    if replicas == scale.desired:
        return Decision(scale=replace(scale, low_since=None, low_peak=0))
    return Decision(
        scale=Scale(desired=replicas, ready=scale.ready), reason=f"{scale.desired} -> {replicas} replicas: {reason}"
    )


class Autoscaler:
    """Keeps the state between decisions, and the last decision that changed something."""

    def __init__(self, policy: AutoscalePolicy, seats: int) -> None:
        """`seats`: sequences that one replica runs at once."""
        self._policy, self._seats = policy, seats
        self._scale: Scale | None = None
        self.last_change = ""

    def step(self, load: Load, *, desired: int, ready: int, now: float) -> Decision:
        """`desired`: the present number, whether set by this autoscaler or by a user."""
        before = self._scale or Scale(desired=desired, ready=ready)
        decision = decide(self._policy, load, replace(before, desired=desired, ready=ready), seats=self._seats, now=now)
        self._scale = decision.scale
        self.last_change = decision.reason or self.last_change
        return decision
