"""What each of two tokens gets of a replica's places, by simulated time: no network, no engine."""

import heapq
import itertools
import random
from collections import Counter

import pytest

from outrider.cluster.gateway.requests.admission import Admission, AdmissionLimits, Ticket
from outrider.workers.types.errors import OverloadedError

PLACES = 16
HELD_S = 2.0  # a place, on average
PEAK = PLACES / HELD_S  # requests per second
SETTLE_S, SECONDS = 10.0, 60.0
DEMANDS = {"heavy": 20 * PEAK, "light": 0.6 * PEAK}  # requests per second


def arrivals(bunched_s: float, dice: random.Random) -> list[tuple[float, str]]:
    """At random, and then late by up to `bunched_s`, all at once: as from a client process that is busy."""
    found = []
    for name, rate in DEMANDS.items():
        at = 0.0
        while (at := at + dice.expovariate(rate)) < SETTLE_S + SECONDS:
            found.append((at if not bunched_s else (int(at / bunched_s) + 1) * bunched_s, name))
    return found


def done_by_token(bunched_s: float, seed: int) -> Counter[str]:
    """Answers that ended within SECONDS. No request waits unless it is for its token's share."""
    now, dice, number, done = [0.0], random.Random(seed), itertools.count(), Counter[str]()
    admission = Admission(AdmissionLimits(max_queue_wait_s=0.05), clock=lambda: now[0])
    admission.set_places(PLACES)
    coming: list[tuple[float, int, str, Ticket | None]] = [
        (at, next(number), name, None) for at, name in arrivals(bunched_s, dice)
    ]
    heapq.heapify(coming)

    def start(ticket: Ticket, name: str) -> None:
        ends = now[0] + HELD_S * dice.uniform(0.7, 1.3)
        heapq.heappush(coming, (ends, next(number), name, ticket))

    while coming:
        now[0], order, name, ticket = heapq.heappop(coming)
        if ticket is not None:
            ticket.close()
            done[name] += SETTLE_S <= now[0] < SETTLE_S + SECONDS
            continue
        try:
            entered = admission.enter(str(order), caller=name)
        except OverloadedError:
            continue
        entered.wait_for_places(lambda ticket=entered, name=name: start(ticket, name))
    return done


@pytest.mark.parametrize("bunched_s", [0.0, 0.5, 1.5])
def test_a_light_token_gets_its_half_however_its_requests_are_bunched(bunched_s: float) -> None:
    done = done_by_token(bunched_s, seed=1)

    assert done.total() >= 0.95 * PEAK * SECONDS
    assert done["light"] >= 0.45 * done.total()
