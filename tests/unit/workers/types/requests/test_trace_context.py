"""W3C Trace Context, beside OpenTelemetry's own propagator."""

import pytest
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from outrider.workers.types.requests.trace_context import TraceContext

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_a_parent_is_read_and_passed_on_as_it_came() -> None:
    context = TraceContext.parse(PARENT, "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE")

    assert context == TraceContext(
        trace_id=TRACE, span_id=SPAN, flags=1, state="rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
    )
    assert context.metadata == (("traceparent", PARENT), ("tracestate", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"))


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01.",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"0x-{TRACE}-{SPAN}-01",
        f" {PARENT}",
        f"{PARENT}\n",
    ],
)
def test_a_malformed_parent_is_none_as_it_is_to_opentelemetry(parent: str) -> None:
    assert TraceContext.parse(parent) is None
    if parent.strip() == parent:  # which is HTTP's to strip
        theirs = TraceContextTextMapPropagator().extract({"traceparent": parent})
        assert not trace.get_current_span(theirs).get_span_context().is_valid


@pytest.mark.parametrize(("parent", "flags"), [(f"cc-{TRACE}-{SPAN}-01-what-comes", 1), (f"00-{TRACE}-{SPAN}-fe", 2)])
def test_what_a_later_version_adds_is_left_behind(parent: str, flags: int) -> None:
    context = TraceContext.parse(parent)

    assert context is not None
    assert context.parent == f"00-{TRACE}-{SPAN}-0{flags}"


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        (" a=1 ,, \tb=2", "a=1,b=2"),
        ("tenant@system=x=", ""),
        ("tenant@system=x", "tenant@system=x"),
        ("0ne=~", "0ne=~"),
        ("A=1", ""),
        ("a=1,a=2", ""),
        ("a", ""),
        ("a=", ""),
        ("a=\u00fc", ""),
        (",".join(f"k{n}=1" for n in range(32)), ",".join(f"k{n}=1" for n in range(32))),
        (",".join(f"k{n}=1" for n in range(33)), ""),
        (f"{'k' * 256}={'v' * 256}", f"{'k' * 256}={'v' * 256}"),
        (f"{'k' * 257}=1", ""),
    ],
)
def test_a_malformed_state_is_dropped_and_the_parent_is_kept(state: str, kept: str) -> None:
    context = TraceContext.parse(PARENT, state)

    assert context is not None
    assert (context.trace_id, context.state) == (TRACE, kept)


def test_metadata_brings_one_parent_and_any_number_of_states() -> None:
    others = [("authorization", "Bearer x"), ("grpc-trace-bin", b"\0")]
    states = [("tracestate", "a=1"), ("tracestate", "b=2")]

    context = TraceContext.of([*others, ("traceparent", PARENT), *states])

    assert context is not None
    assert context.state == "a=1,b=2"
    assert TraceContext.of([("traceparent", PARENT), ("traceparent", PARENT)]) is None
    assert TraceContext.of([*others, *states]) is None


def test_a_drawn_context_is_one_that_can_be_read_and_never_the_same() -> None:
    first, second = TraceContext.new(), TraceContext.new()

    assert TraceContext.parse(first.parent) == first
    assert (first.trace_id, first.span_id) != (second.trace_id, second.span_id)
