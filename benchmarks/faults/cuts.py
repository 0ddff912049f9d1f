"""Streams that are cut after every message, and resumed at another gateway each time, as a client does."""

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.faults.cluster import Cluster
from benchmarks.faults.load import LoadGenerator
from benchmarks.faults.oracle import Transcript, differences
from benchmarks.faults.requests import ChaosRequest
from outrider.cluster.api.calls import call_to_wire
from outrider.cluster.api.events import event_from_wire
from outrider.cluster.client.base import OPTIONS, PLAIN
from outrider.cluster.client.resume import ResumableCall
from outrider.proto import inference_pb2_grpc


async def cut_everywhere(
    cluster: Cluster, load: LoadGenerator, requests: Sequence[ChaosRequest], most_cuts: int, times: int = 1
) -> dict[str, Any]:
    """One request after the other, all of them `times` times, until `most_cuts` cuts were made. A request that fails
    raises its error."""
    baseline = await load.baseline(requests)
    channels = [PLAIN.aio_channel(address, OPTIONS) for address in cluster.addresses]
    stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]
    cuts, streams, wrong = 0, 0, {}
    for request in [*requests] * times:
        if cuts >= most_cuts:
            break
        transcript, own_cuts = await _cut_after_every_message(stubs, request)
        cuts, streams = cuts + own_cuts, streams + 1
        if found := differences(transcript, baseline[request.name]):
            wrong[request.name] = found
            print(f"  {request.name}: {'; '.join(found)[:600]}", flush=True)
    for channel in channels:
        await channel.close()
    return {"cuts": cuts, "streams": streams, "lost": 0, "changed": len(wrong)}


async def _cut_after_every_message(stubs: Sequence[Any], request: ChaosRequest) -> tuple[Transcript, int]:
    transcript, cuts = Transcript(), 0
    call = ResumableCall(request.call, patience_s=60.0, now=time.monotonic())
    while True:
        responses = stubs[cuts % len(stubs)].Generate(call_to_wire(call.call))
        async for response in responses:
            event = call.receive(event_from_wire(response), time.monotonic())
            if event is None:
                continue
            transcript.add(event, time.monotonic())
            if transcript.completion_tokens is not None:
                responses.cancel()
                return transcript, cuts
            break
        responses.cancel()
        cuts += 1
