"""One request that kills every engine that computes it, among others that must not notice."""

import asyncio
from collections.abc import Sequence
from typing import Any

from faults.cluster import Cluster
from faults.crowd import Crowd, Stream
from faults.oracle import Heard
from faults.questions import Question
from faults.troubled import POISON

from outrider.workers.types.errors import OutriderError

BYSTANDERS = 100


async def beside_poison(
    cluster: Cluster, crowd: Crowd, questions: Sequence[Question], bystanders: int = BYSTANDERS
) -> dict[str, Any]:
    twins: dict[str, Heard] = await crowd.answers(questions)
    streams = [Stream(questions[n % len(questions)], n % 2) for n in range(bystanders)]
    tasks = [asyncio.create_task(one.run(crowd.clients[one.client])) for one in streams]
    while not any(one.heard.tokens for one in streams):
        await asyncio.sleep(0.005)
    said = await _ask_poison(crowd)
    await asyncio.gather(*tasks)
    await asyncio.to_thread(cluster.mend)
    status = await asyncio.to_thread(cluster.status)
    assert status is not None
    wrong = {one.question.name: texts for one in streams if (texts := one.wrong(twins[one.question.name]))}
    for name, texts in list(wrong.items())[:5]:
        print(f"  {name}: {'; '.join(texts)[:600]}", flush=True)
    return {
        "bystanders": bystanders,
        "finished": sum(not one.error for one in streams),
        "generations_lost": sum(one.generation - 1 for one in status.replicas),
        "poison_heard": said,
        "lost": sum(bool(one.error) for one in streams),
        "changed": sum(not one.error and one.question.name in wrong for one in streams),
    }


async def _ask_poison(crowd: Crowd) -> str:
    try:
        await crowd.clients[0].generate(token_ids=[5, 6, POISON], max_tokens=8)
    except OutriderError as error:
        return str(error)
    return "an answer"
