"""Streams that are cut after every message, and resumed each time as a client does at another gateway."""

import time
from collections.abc import Sequence
from typing import Any

from faults.cluster import Cluster
from faults.crowd import Crowd
from faults.oracle import Heard, differences
from faults.questions import Question

from outrider.cluster.client import OPTIONS, PLAIN
from outrider.cluster.client_resume import ResumableCall
from outrider.cluster.gateway import wire
from outrider.proto import inference_pb2_grpc


async def cut_everywhere(
    cluster: Cluster, crowd: Crowd, questions: Sequence[Question], most_cuts: int
) -> dict[str, Any]:
    """Questions in turn until so many cuts were made."""
    twins = await crowd.answers(questions)
    channels = [PLAIN.aio_channel(address, OPTIONS) for address in cluster.addresses]
    stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]
    cuts, asked, wrong = 0, 0, {}
    for question in questions:
        if cuts >= most_cuts:
            break
        heard, own = await _cut_after_every_message(stubs, question)
        cuts, asked = cuts + own, asked + 1
        if found := differences(heard, twins[question.name]):
            wrong[question.name] = found
            print(f"  {question.name}: {'; '.join(found)[:600]}", flush=True)
    for channel in channels:
        await channel.close()
    return {"cuts": cuts, "streams": asked, "lost": 0, "changed": len(wrong)}


async def _cut_after_every_message(stubs: Sequence[Any], question: Question) -> tuple[Heard, int]:
    heard, cuts = Heard(), 0
    request = ResumableCall(question.call, patience_s=60.0, now=time.monotonic())
    while True:
        responses = stubs[cuts % len(stubs)].Generate(wire.call_to_wire(request.call))
        async for response in responses:
            event = request.hear(wire.event_from_wire(response), time.monotonic())
            if event is None:
                continue
            heard.add(event, time.monotonic())
            if heard.completion_tokens is not None:
                responses.cancel()
                return heard, cuts
            break
        responses.cancel()
        cuts += 1
