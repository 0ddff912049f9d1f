"""Many streams through the gateway for minutes, cancelled at random; then what is left: blocks, threads, files.

    python benchmarks/serving/soak.py [--streams 32] [--seconds 120]

Serves scout on two stages as a user would, and exits 1 if anything leaked or a stream ended as it should not.
"""

import argparse
import asyncio
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.prompts import prompts
from benchmarks.common.results import save
from benchmarks.serving.served_model import Served
from outrider import AsyncClient
from outrider.cluster.api.errors import DeadlineExceededError
from outrider.cluster.api.generation import Finished, Output

LEEWAY = 3  # threads and files that a process may have more than before: pools fill lazily


async def one_stream(client: AsyncClient, rng: random.Random, texts: list[str], tally: Counter[str]) -> None:
    """One request that runs to its end, is left early, or runs into its deadline; counts how it ended."""
    wanted, fate = rng.randint(8, 96), rng.random()
    leave_after = rng.randint(1, wanted) if fate < 0.35 else None
    timeout_s = rng.uniform(0.05, 1.0) if fate > 0.9 else None
    tokens, finished = 0, False
    stream = client.stream(
        rng.choice(texts), temperature=rng.choice([0, 0.8]), max_tokens=wanted, ignore_eos=True, timeout_s=timeout_s
    )
    try:
        async for event in stream:
            tokens += len(event.token_ids) if isinstance(event, Output) else 0
            finished |= isinstance(event, Finished)
            if leave_after is not None and tokens >= leave_after:
                tally["left early"] += 1
                return
    except DeadlineExceededError:
        tally["deadline" if timeout_s is not None else "UNEXPECTED deadline"] += 1
        return
    finally:
        await stream.aclose()  # type: ignore[attr-defined]  # an async generator
    tally["finished" if finished and tokens == wanted else "UNEXPECTED end"] += 1


async def keep_busy(address: str, streams: int, seconds: float) -> Counter[str]:
    texts, tally, until = prompts("code", 20) + prompts("prose", 20), Counter[str](), time.monotonic() + seconds

    async def worker(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < until:
            await one_stream(client, rng, texts, tally)

    async with AsyncClient(address) as client:
        await asyncio.gather(*(worker(number) for number in range(streams)))
    return tally


async def settled_status(address: str) -> tuple[int, float]:
    """Requests running or waiting, and cache use, once nothing changes any more."""
    async with AsyncClient(address) as client:
        for _ in range(40):
            engine = (await client.status()).replicas[0].engine
            if engine.running + engine.waiting == 0:
                break
            await asyncio.sleep(0.25)
        return engine.running + engine.waiting, engine.kv_cache_usage


def resources(server: subprocess.Popen[str]) -> dict[str, tuple[int, int]]:
    """Threads and open files of our own processes: the gateway and the ranks."""
    found = {}
    for process in psutil.Process(server.pid).children(recursive=True):
        line = " ".join(process.cmdline())
        if "outrider.cluster.cli gateway" in line or "ray::" in line:
            name = "gateway" if "gateway" in line else line.split()[0]
            found[f"{name} {process.pid}"] = (process.num_threads(), process.num_fds())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120)
    args = parser.parse_args()
    with Served("soak", "--pipeline-parallel-size", "2") as served:
        asyncio.run(keep_busy(served.address, args.streams, 15))
        before = resources(served.process)
        tally = asyncio.run(keep_busy(served.address, args.streams, args.seconds))
        live, cache = asyncio.run(settled_status(served.address))
        time.sleep(2)
        after = resources(served.process)
    grown = {name: (before[name], after.get(name)) for name in before if _grew(before[name], after.get(name))}
    figures = {"streams": dict(tally), "live": live, "cache": cache, "grown": grown, "exit_status": served.exit_status}
    print(figures)
    print(
        "written to",
        save("soak", f"benchmarks/serving/soak.py --streams {args.streams} --seconds {args.seconds:g}", figures),
    )
    bad = [kind for kind in tally if kind.startswith("UNEXPECTED")]
    return 1 if bad or live or cache > 1e-9 or grown or served.exit_status else 0


def _grew(before: tuple[int, int], after: tuple[int, int] | None) -> bool:
    return after is None or any(b > a + LEEWAY for a, b in zip(before, after, strict=True))


if __name__ == "__main__":
    sys.exit(main())
