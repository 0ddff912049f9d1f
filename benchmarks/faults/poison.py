"""A poison request, which kills every engine that computes it, beside requests that must not notice it."""

import asyncio
from collections.abc import Sequence
from typing import Any

from benchmarks.faults.cluster import Cluster
from benchmarks.faults.faulty_rank import POISON
from benchmarks.faults.load import POLL_S, LoadGenerator, Stream, all_ended
from benchmarks.faults.requests import ChaosRequest
from outrider.workers.types.errors import OutriderError

BYSTANDERS = 100


async def run_beside_poison(
    cluster: Cluster, load: LoadGenerator, requests: Sequence[ChaosRequest], bystanders: int = BYSTANDERS
) -> dict[str, Any]:
    baseline = await load.baseline(requests)
    streams = [Stream(requests[n % len(requests)], n % 2) for n in range(bystanders)]
    tasks = [asyncio.create_task(one.run(load.clients[one.client])) for one in streams]
    while not any(one.transcript.tokens for one in streams) and not all_ended(streams):
        await asyncio.sleep(POLL_S)
    poison_error = await _send_poison(load)
    await asyncio.gather(*tasks)
    await asyncio.to_thread(cluster.restore)
    status = await asyncio.to_thread(cluster.status)
    assert status is not None
    wrong = [(one, texts) for one in streams if (texts := one.problems(baseline[one.request.name]))]
    for stream, texts in wrong[:5]:
        print(f"  {stream.request.name}: {'; '.join(texts)[:600]}", flush=True)
    return {
        "bystanders": bystanders,
        "finished": sum(not one.error for one in streams),
        "generations_lost": sum(one.generation - 1 for one in status.replicas),
        "poison_error": poison_error,
        "lost": sum(bool(one.error) for one, _ in wrong),
        "changed": sum(not one.error for one, _ in wrong),
    }


async def _send_poison(load: LoadGenerator) -> str:
    try:
        await load.clients[0].generate(token_ids=[5, 6, POISON], max_tokens=8)
    except OutriderError as error:
        return str(error)
    return "none: the request was answered"
