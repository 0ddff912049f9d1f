"""Serving under load: requests that arrive by chance at a given rate, through the gateway, timed as a client sees them.

    python benchmarks/serving/arrival_rates.py [--rates 1,4,16] [--seconds 20] [--speculation off,auto] [--address H:P]

What `outrider bench` does, on a server of its own unless told an address. Arrivals are Poisson and do not wait for
answers: a server that falls behind shows it in its times. The same arrivals, prompts and seeds meet each speculation
in turn, on the same server, which drafts unless a request says "off". A request's times count from when it was due.

Time to first token, and end to end; between tokens: the mean of each request, from its first token to its last;
between messages: every gap that a reader sees, however many tokens the next message brings.
"""

import argparse
import asyncio
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.arguments import numbers, words
from benchmarks.common.results import save
from benchmarks.serving.served_model import Served
from outrider import AsyncClient
from outrider.cluster.cli.commands.bench import windows
from outrider.cluster.client.bench import load, warm_up
from outrider.workers.config import resolve_model


async def measure(address: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    asked = windows(
        args.rates, args.speculation, seconds=args.seconds, max_tokens=args.tokens, temperature=args.temperature
    )
    figures = []
    async with AsyncClient(address) as client:
        for window in asked[: len(args.speculation)]:
            await warm_up(client, window)
        for window in asked:
            figures.append(await load(client, window))
            print(line(figures[-1]), flush=True)
    return figures


def line(window: dict[str, Any]) -> str:
    parts = [f"{window['rate']:g} requests/s, {window['speculation']}: {window['tokens_per_second']:.0f} tokens/s"]
    for name in ("first_token_s", "between_tokens_s", "end_to_end_s"):
        values = window[name]
        if values:
            what = name.removesuffix("_s").replace("_", " ")
            parts.append(f"{what} {' / '.join(f'{1e3 * value:.1f}' for value in values.values())} ms")
    if window["errors"]:
        parts.append(f"errors {window['errors']}")
    return "; ".join(parts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scout", help="a bundled model's name, or a checkpoint's directory")
    parser.add_argument("--pipeline-parallel-size", type=int, default=1)
    parser.add_argument("--address", help="HOST:PORT of a gateway that is there already")
    parser.add_argument("--rates", type=numbers, default=[1, 4, 16], help="requests a second")
    parser.add_argument("--seconds", type=float, default=20, help="that requests arrive for, at each rate")
    parser.add_argument("--speculation", type=words, default=["off", "auto"])
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--tokens", type=int, default=64, help="of output, of each request")
    parser.add_argument("--name", help="of the file of results (serve-MODEL)")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    options = ["--model", args.model, "--pipeline-parallel-size", str(args.pipeline_parallel_size)]
    with nullcontext() if args.address else Served("bench-serve", *options) as served:
        figures = asyncio.run(measure(served.address if served else args.address, args))
    name = args.name or f"serve-{resolve_model(args.model).name}"
    command = f"benchmarks/serving/arrival_rates.py {shlex.join(sys.argv[1:])}".strip()
    measured = {"seconds": args.seconds, "tokens": args.tokens, "temperature": args.temperature, "windows": figures}
    print("written to", save(name, command, measured))


if __name__ == "__main__":
    main()
