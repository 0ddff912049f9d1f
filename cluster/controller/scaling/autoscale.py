"""The autoscaling policy. Pure: takes the load, returns the number of replicas and the reason.

Scales up immediately, and down only after the load has been low for `cooldown_s`. Never scales below what the running
sequences need. roster.py chooses which replica to remove; reconcile.py drains it first.
"""

import math
from dataclasses import dataclass, replace

from outrider.cluster.api.load_report import Load

FORGOTTEN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalePolicy:
    """`headroom`: spare capacity as a share of the load; 0.2 means 20 % more than the load needs."""

    min_replicas: int
    max_replicas: int
    target_tokens: int  # in flight on one replica
    target_wait_s: float  # longest acceptable wait for a first token
    headroom: float
    cooldown_s: float  # how long the load must be low before a replica is removed

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas:
            most = f"autoscale_max_replicas ({self.max_replicas})"
            raise ValueError(f"autoscale_min_replicas must be 0..{most}, got {self.min_replicas}")


class WaitingLoads:
    """The latest load report of each gateway. A report older than FORGOTTEN_S is ignored."""

    def __init__(self) -> None:
        self._reported: dict[str, tuple[float, Load]] = {}  # time and load

    def report(self, gateway: str, load: Load, now: float) -> None:
        self._reported[gateway] = (now, load)
        self._reported = {name: one for name, one in self._reported.items() if now - one[0] < FORGOTTEN_S}

    def total(self, now: float) -> Load:
        return Load.total(load for at, load in self._reported.values() if now - at < FORGOTTEN_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The number of replicas, and since when the load needs fewer."""

    desired: int
    ready: int
    low_since: float | None = None
    low_peak: int = 0  # the maximum that the load has needed since then


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`reason` is empty if the number does not change. Pass `scale` to the next decision."""

    scale: Scale
    reason: str = ""


def decide(policy: AutoscalePolicy, load: Load, scale: Scale, *, max_num_seqs: int, now: float) -> Decision:
    """`max_num_seqs`: maximum number of running sequences per replica. `now`: from any monotonic clock."""
    wanted, reason = _wanted(policy, load, scale)
    wanted = min(policy.max_replicas, max(policy.min_replicas, _needed_by_running(load, max_num_seqs), wanted))
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
    """From the tokens in flight. One more than now if requests wait too long although all replicas are ready."""
    by_tokens = math.ceil(load.tokens * (1 + policy.headroom) / policy.target_tokens)
    waits_long = load.oldest_wait_s > policy.target_wait_s
    if waits_long and scale.desired >= by_tokens:
        more = 1 if scale.ready >= scale.desired else 0
        return scale.desired + more, f"a request has waited {load.oldest_wait_s:.1f} s for its first token"
    return by_tokens, f"{load.tokens} tokens in flight need {by_tokens} replicas of {policy.target_tokens} tokens each"


def _needed_by_running(load: Load, max_num_seqs: int) -> int:
    return math.ceil(load.sequences / max_num_seqs)


def _to(replicas: int, scale: Scale, reason: str) -> Decision:
    if replicas == scale.desired:
        return Decision(scale=replace(scale, low_since=None, low_peak=0))
    return Decision(
        scale=Scale(desired=replicas, ready=scale.ready), reason=f"{scale.desired} -> {replicas} replicas: {reason}"
    )


class Autoscaler:
    """Holds the state between decisions, and the last change."""

    def __init__(self, policy: AutoscalePolicy, max_num_seqs: int) -> None:
        """`max_num_seqs`: maximum number of running sequences per replica."""
        self._policy, self._max_num_seqs = policy, max_num_seqs
        self._scale: Scale | None = None
        self.last_change = ""

    def step(self, load: Load, *, desired: int, ready: int, now: float) -> Decision:
        """`desired`: the current desired number, set by this autoscaler or by a user."""
        before = self._scale or Scale(desired=desired, ready=ready)
        decision = decide(
            self._policy, load, replace(before, desired=desired, ready=ready), max_num_seqs=self._max_num_seqs, now=now
        )
        self._scale = decision.scale
        self.last_change = decision.reason or self.last_change
        return decision
