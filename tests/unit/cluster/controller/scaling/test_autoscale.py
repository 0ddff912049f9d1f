from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.cluster.api.load_report import Load
from outrider.cluster.config import ServeSettings
from outrider.cluster.controller.scaling.autoscale import (
    FORGOTTEN_S,
    AutoscalePolicy,
    Autoscaler,
    Decision,
    Scale,
    WaitingLoads,
    decide,
)

POLICY = AutoscalePolicy(
    min_replicas=1, max_replicas=8, target_tokens=1000, target_wait_s=2.0, headroom=0.25, cooldown_s=60.0
)
LOADS = st.builds(Load, tokens=st.integers(0, 20_000), sequences=st.integers(0, 300), oldest_wait_s=st.floats(0, 10))


def decided(load: Load, *, desired: int, ready: int | None = None, now: float = 0.0, **scale: object) -> Decision:
    state = Scale(desired=desired, ready=desired if ready is None else ready, **scale)  # type: ignore[arg-type]  # its own
    return decide(POLICY, load, state, max_num_seqs=64, now=now)


def test_replicas_follow_the_tokens_in_flight_with_headroom() -> None:
    decision = decided(Load(tokens=2000), desired=1)

    assert decision.scale.desired == 3, "2000 tokens and a quarter more, at 1000 each"
    assert decision.reason == "1 -> 3 replicas: 2000 tokens in flight need 3 replicas of 1000 tokens each"


def test_a_single_token_that_waits_brings_the_first_replica() -> None:
    policy = replace(POLICY, min_replicas=0)

    decision = decide(policy, Load(tokens=1), Scale(desired=0, ready=0), max_num_seqs=64, now=0)

    assert decision.scale.desired == 1


def test_a_request_that_waits_too_long_brings_one_more() -> None:
    decision = decided(Load(tokens=100, oldest_wait_s=2.1), desired=2)

    assert decision.scale.desired == 3
    assert "waited 2.1 s" in decision.reason


def test_while_a_replica_is_on_its_way_waiting_brings_no_other() -> None:
    assert decided(Load(tokens=100, oldest_wait_s=9), desired=3, ready=2) == Decision(scale=Scale(desired=3, ready=2))


def test_a_low_load_takes_replicas_away_only_after_the_cooldown() -> None:
    first = decided(Load(tokens=100), desired=4, now=10)
    later = decide(POLICY, Load(tokens=100), first.scale, max_num_seqs=64, now=69)
    at_last = decide(POLICY, Load(tokens=100), later.scale, max_num_seqs=64, now=70)

    assert (first.scale.desired, later.scale.desired) == (4, 4)
    assert at_last.scale == Scale(desired=1, ready=4)
    assert at_last.reason.endswith("for 60 s")


def test_a_peak_within_the_cooldown_is_kept_room_for() -> None:
    scale = decided(Load(tokens=100), desired=4, now=0).scale
    scale = decide(POLICY, Load(tokens=2300), scale, max_num_seqs=64, now=30).scale

    assert decide(POLICY, Load(tokens=100), scale, max_num_seqs=64, now=60).scale.desired == 3


def test_a_load_that_rises_again_starts_the_cooldown_anew() -> None:
    scale = decided(Load(tokens=100), desired=2, now=0).scale
    scale = decide(POLICY, Load(tokens=1500), scale, max_num_seqs=64, now=50).scale
    scale = decide(POLICY, Load(tokens=100), scale, max_num_seqs=64, now=60).scale

    assert decide(POLICY, Load(tokens=100), scale, max_num_seqs=64, now=110).scale.desired == 2


def test_never_fewer_than_what_runs_needs() -> None:
    scale = Scale(desired=5, ready=5, low_since=0.0)

    assert decide(POLICY, Load(tokens=0, sequences=130), scale, max_num_seqs=64, now=100).scale.desired == 3


@given(
    loads=st.lists(st.tuples(LOADS, st.floats(0, 100), st.integers(0, 3)), max_size=12),
    desired=st.integers(1, 8),
)
def test_whatever_the_load_the_number_stays_in_its_bounds_and_every_change_has_a_reason(
    loads: list[tuple[Load, float, int]], desired: int
) -> None:
    autoscaler, now = Autoscaler(POLICY, max_num_seqs=64), 0.0
    for load, pause, pending in loads:
        now += pause
        decision = autoscaler.step(load, desired=desired, ready=max(0, desired - pending), now=now)
        assert 1 <= decision.scale.desired <= 8
        assert bool(decision.reason) == (decision.scale.desired != desired)
        if decision.scale.desired < desired:
            assert decision.scale.desired >= min(8, -(-load.sequences // 64))
        desired = decision.scale.desired


@given(load=LOADS, more=st.integers(0, 10_000), desired=st.integers(1, 8))
def test_more_load_never_wants_fewer(load: Load, more: int, desired: int) -> None:
    heavier = replace(load, tokens=load.tokens + more)

    assert decided(heavier, desired=desired).scale.desired >= decided(load, desired=desired).scale.desired


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_replicas", 9),
        ("target_tokens", 0),
        ("headroom", -0.1),
        ("cooldown_s", float("nan")),
        ("cooldown_s", float("inf")),
        ("target_wait_s", -1),
    ],
)
def test_a_setting_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"autoscale_{name} must be"):
        ServeSettings(autoscale_max_replicas=8, **{f"autoscale_{name}": value})  # type: ignore[arg-type]  # a table


def test_what_waits_at_gateways_is_summed_by_their_latest_reports_and_a_silent_one_is_forgotten() -> None:
    waiting = WaitingLoads()
    waiting.report("a", Load(tokens=900, oldest_wait_s=9.0), now=0.0)
    waiting.report("a", Load(tokens=100, oldest_wait_s=1.0), now=1.0)
    waiting.report("b", Load(tokens=10, oldest_wait_s=3.0), now=3.0)

    assert waiting.total(3.0) == Load(tokens=110, oldest_wait_s=3.0)
    assert waiting.total(1.0 + FORGOTTEN_S) == Load(tokens=10, oldest_wait_s=3.0)
    assert waiting.total(3.0 + FORGOTTEN_S) == Load()
