"""What a gateway costs: a stream at batch 1 through it, over gRPC and over HTTP, beside the engine in process.

`stream`: tokens/s after the first token, beside `LLM.stream`; `whole`: over the whole request, beside `LLM.generate`,
which wakes its caller once. Engine and gateways take turns on the same prompts, and the ratios are medians of pairs.

`python benchmarks/serving/gateway_overhead.py [--tokens 400] [--repeats 7] [--speculation auto] [--json FILE]`
"""

import argparse
import json
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.serving.served_model import Served
from outrider import LLM, Client, SamplingParams
from outrider.cluster.api.generation import Output
from outrider.cluster.gateway_process import free_port

PROMPTS = ("def fibonacci(n):", "The kernel schedules", "import os\n\n\ndef main():", "class Stack:")
Ways = dict[str, Callable[[str], Iterator[int]]]  # a prompt to the number of tokens of each piece as it comes


def in_process(llm: LLM, options: dict[str, object]) -> Callable[[str], Iterator[int]]:
    return lambda prompt: (len(delta.token_ids) for delta in llm.stream(prompt, SamplingParams(**options)))  # type: ignore[arg-type]


def over_grpc(client: Client, options: dict[str, object]) -> Callable[[str], Iterator[int]]:
    return lambda prompt: (
        len(event.token_ids) for event in client.stream(prompt, **options) if isinstance(event, Output)
    )


def over_http(url: str, options: dict[str, object]) -> Callable[[str], Iterator[int]]:
    def stream(prompt: str) -> Iterator[int]:
        body = {"prompt": prompt, "stream": True, "return_token_ids": True, **options}
        request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request) as response:
            for line in response:
                if line.startswith(b"data: {"):
                    yield len(json.loads(line[6:])["choices"][0]["token_ids"])

    return stream


def speeds(pieces: Iterator[int]) -> dict[str, float]:
    """Tokens/s after the first piece, and over all."""
    asked = time.perf_counter()
    first = next(count for count in pieces if count)
    began = time.perf_counter()
    later = sum(pieces)
    ended = time.perf_counter()
    return {"stream": later / (ended - began), "whole": (first + later) / (ended - asked)}


def whole(llm: LLM, prompt: str, options: dict[str, object]) -> float:
    """Tokens/s of a request whose tokens are not read before its end."""
    began = time.perf_counter()
    (output,) = llm.generate(prompt, SamplingParams(**options))  # type: ignore[arg-type]
    return len(output.outputs[0].token_ids) / (time.perf_counter() - began)


def _summary(found: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    ratios = {name: [a / b for a, b in zip(found[name], found["engine"], strict=True)] for name in ("grpc", "http")}
    return {
        "tokens_per_s": {name: round(statistics.median(values), 1) for name, values in found.items()},
        "of_the_engine": {name: round(statistics.median(values), 3) for name, values in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--speculation", default="auto")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    port = free_port("127.0.0.1")
    options: dict[str, object] = {
        "max_tokens": arguments.tokens, "ignore_eos": True, "temperature": 0.0, "speculation": arguments.speculation
    }  # fmt: skip
    with Served("gateway-cost", "--http-port", str(port)) as served, Client(served.address) as client, LLM() as llm:
        ways: Ways = {
            "engine": in_process(llm, options),
            "grpc": over_grpc(client, options),
            "http": over_http(f"http://127.0.0.1:{port}", options),
        }
        found: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in ways} for kind in ("stream", "whole")}
        for repeat in range(arguments.repeats + 1):
            for prompt in PROMPTS:
                for name, way in ways.items():
                    measured = speeds(way(prompt))
                    if name == "engine":
                        measured["whole"] = whole(llm, prompt, options)
                    for kind in found if repeat else ():  # the first warms up
                        found[kind][name].append(measured[kind])
    result = {kind: _summary(each) for kind, each in found.items()}
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
