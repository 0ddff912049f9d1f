"""What ranks exchange in a round is what `outrider plan` counts, purpose by purpose."""

import pytest

from benchmarks.parallel import split_traffic

ALWAYS = ("PP2xDP2+EP2",)


def _assert_as_planned(name: str) -> None:
    split = split_traffic.SPLITS[name]
    figures = split_traffic.measure("scout", split, streams=4, tokens=24)
    measured, planned = figures["measured"], figures["planned"]

    assert figures["rounds"] >= 24, "of one row a stream each"
    assert split_traffic.differences(figures).startswith("equal"), (
        "to the byte, but for what rows chose and idle groups"
    )
    assert {purpose: each["count"] for purpose, each in measured.items()} == {
        purpose: each["count"] for purpose, each in planned.items()
    }
    for purpose, each in planned.items():
        routed = purpose in split_traffic.ROUTED  # whose bytes the planner knows on average only
        assert measured[purpose]["bytes"] == pytest.approx(each["bytes"], rel=0.35 if routed else 0.05)


@pytest.mark.parametrize("name", ALWAYS)
def test_a_round_exchanges_what_the_planner_counts(name: str) -> None:
    _assert_as_planned(name)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in split_traffic.SPLITS if name not in ALWAYS])
def test_so_it_does_on_every_other_split(name: str) -> None:
    _assert_as_planned(name)


def test_what_differs_is_named() -> None:
    heads = {"count": 2, "bytes": 100.0, "ms": 0.0}
    planned = {"heads": heads, "latents": heads}
    measured = {"heads": {**heads, "bytes": 90.0}, "logits": heads}

    found = split_traffic.differences({"measured": measured, "planned": planned, "rows": 1.0})

    assert found == "counts differ for ['latents', 'logits'], bytes for ['heads', 'latents', 'logits']"
