"""What chaos.py relies on: an oracle that finds every difference, and a schedule that a seed reproduces."""

from collections import Counter

import pytest

from benchmarks.faults.figures import times
from benchmarks.faults.oracle import Transcript, differences
from benchmarks.faults.schedule import Fault, schedule
from outrider.cluster.api.generation import Accepted, Event, Failed, Finished, Output
from outrider.workers.text.assembler import Usage
from outrider.workers.text.outputs import Logprob
from outrider.workers.types.requests.request import FinishReason

ACCEPTED = Accepted(request_id="r", seed=1, prompt_tokens=2, fingerprint="f")
LIKELY = {5: Logprob(logprob=-0.5, rank=1, decoded_token="a")}
LESS = {5: Logprob(logprob=-0.25, rank=1, decoded_token="a")}
SAID = Output(index=0, token_ids=(5,), text="a", logprobs=(LIKELY,), prompt_logprobs=(LIKELY,))
END = Finished(index=0, reason=FinishReason.LENGTH, usage=Usage(completion_tokens=1))


def transcript(*events: Event) -> Transcript:
    one = Transcript()
    for at, event in enumerate(events):
        one.add(event, float(at))
    return one


def test_the_same_events_are_no_difference_however_they_are_grouped() -> None:
    parts = (Output(index=0, prompt_logprobs=(LIKELY,)), Output(index=0, token_ids=(5,), logprobs=(LIKELY,)))

    found = differences(transcript(ACCEPTED, *parts, Output(index=0, text="a"), END), transcript(ACCEPTED, SAID, END))

    assert found == []


@pytest.mark.parametrize(
    "events",
    [
        (ACCEPTED, SAID),
        (SAID, END),
        (ACCEPTED, ACCEPTED, SAID, END),
        (ACCEPTED, SAID, SAID, END),
        (ACCEPTED, SAID, END, END),
        (ACCEPTED, END, SAID),
        (ACCEPTED, SAID, Failed(message="lost")),
        (ACCEPTED, Output(index=0, token_ids=(6,), text="a", logprobs=(LIKELY,), prompt_logprobs=(LIKELY,)), END),
        (ACCEPTED, Output(index=0, token_ids=(5,), text="b", logprobs=(LIKELY,), prompt_logprobs=(LIKELY,)), END),
        (ACCEPTED, Output(index=0, token_ids=(5,), text="a", logprobs=(LESS,), prompt_logprobs=(LIKELY,)), END),
        (ACCEPTED, Output(index=0, token_ids=(5,), text="a", logprobs=(LIKELY,), prompt_logprobs=(LESS,)), END),
        (ACCEPTED, SAID, Finished(index=0, reason=FinishReason.STOP, usage=Usage(completion_tokens=1))),
        (ACCEPTED, SAID, Finished(index=0, reason=FinishReason.LENGTH, usage=Usage(completion_tokens=2))),
        (ACCEPTED, SAID, Finished(index=0, reason=FinishReason.LENGTH)),
    ],
)
def test_every_change_that_a_client_would_see_is_a_difference(events: tuple[Event, ...]) -> None:
    assert differences(transcript(*events), transcript(ACCEPTED, SAID, END))


def test_a_seed_reproduces_its_schedule_in_which_every_fault_meets_every_number_of_streams() -> None:
    faults, streams = tuple(Fault), (1, 64)

    planned = schedule(7, len(faults) * len(streams), faults, streams)

    assert planned == schedule(7, len(planned), faults, streams)
    assert planned != schedule(8, len(planned), faults, streams)
    met = Counter((episode.injections[0].fault, episode.streams) for episode in planned)
    assert len(met) == len(planned)
    assert any(len(episode.injections) == 2 for episode in planned)


def test_one_fault_comes_several_times_in_a_row_where_that_is_asked_for() -> None:
    (episode,) = schedule(1, 1, (Fault.REPLICA_DRAIN,), (64,), pairs=0.0, in_a_row=5)

    assert [one.fault for one in episode.injections] == [Fault.REPLICA_DRAIN] * 5
    assert [one.after for one in episode.injections] == sorted(one.after for one in episode.injections)


def test_times_of_faults_that_came_alone_are_told_apart_from_those_in_pairs() -> None:
    alone = {"fault": "rank KILL", "streams": 1, "alone": True, "noticed_s": 1.0, "resumed_s": None}
    paired = {"fault": "rank KILL", "streams": 1, "alone": False, "noticed_s": 30.0, "resumed_s": 30.0}

    found = times([alone, paired])

    assert found["noticed_s"] == found["by_fault_s"]["rank KILL"]["noticed_s"] == {"p50": 1.0, "p99": 1.0, "max": 1.0}
    assert found["resumed_s"] == {}
    assert found["in_pairs"]["resumed_s"]["max"] == 30.0
