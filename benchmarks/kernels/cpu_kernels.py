"""The compiled kernels against this machine: bandwidth, products, attention, experts, a round by its rows, drafts.

    python benchmarks/kernels/cpu_kernels.py [--model scout] [--dtype float32] [--threads 1,2] [--only stage,draft]

First the machine's own read bandwidth, measured; then products over sets of weights that no cache holds, in each kind
of weights: GB/s, the share of that bandwidth, GFLOP/s, and T(rows)/T(1). Then the model's parts: rounds of one sequence
by rows, whole and with dense layers alone, and what share of the bandwidth a round of one row reads its weights with;
experts and attention as differences of rounds (kernels/model_parts.py); drafts over a round of one row; draws. A model
that the last-level cache holds in good part can read its weights faster than memory gives them. Interleaved; medians.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.arguments import numbers, words
from benchmarks.common.repeats import interleaved, median, seconds
from benchmarks.common.results import counted, save
from benchmarks.kernels.bandwidth import last_level_cache, read_bandwidth
from benchmarks.kernels.linears import KINDS, PRODUCTS, WeightSet, measure, weight_bytes
from benchmarks.kernels.model_parts import MOST_ROWS, Loaded, draws
from outrider.kernels.cpu.context import Context
from outrider.workers.config import resolve_model

SECTIONS = ["linear", "stage", "attention", "draft", "sample"]
FEW_ROWS = [1, 2, 3, 4, 6, 8, 12, 16]
ROWS = range(1, MOST_ROWS + 1)
DRAFTS = (1, 2, 4, 8)
CUT_HEAD = 1024  # tokens of a head cut for the measurement, where the checkpoint has none
Times = dict[str, float]


def medians_us(arms: Mapping[str, Callable[[], object]], repeats: int) -> Times:
    """Microseconds of each call, interleaved."""
    timed = {name: partial(seconds, call) for name, call in arms.items()}
    interleaved(timed, 3)
    return {name: 1e6 * median(values) for name, values in interleaved(timed, repeats).items()}


def linear(args: argparse.Namespace, gb_per_s: dict[int, float]) -> list[dict[str, Any]]:
    """One entry for each product, kind of weights and number of threads."""
    entries = []
    contexts = {threads: Context(threads) for threads in args.threads}
    for product in PRODUCTS:
        for kind in KINDS:
            weights = WeightSet(product, kind)
            for threads, context in contexts.items():
                by_rows = measure(weights, context, FEW_ROWS, max(args.repeats // 20, 1), gb_per_s[threads])
                entry = {"product": product.name, "outputs": product.outputs, "inputs": product.inputs}
                entries.append({**entry, "kind": kind, "threads": threads, "by_rows": by_rows})
                print(f"{product.name} {kind}, {counted(threads, 'thread')}: {products_line(by_rows)}", flush=True)
    return entries


def products_line(by_rows: dict[str, Any]) -> str:
    one, four, most = by_rows["1"], by_rows["4"], by_rows["16"]
    growth = f"T(4)/T(1) {four['over_one_row']:.2f}, T(16)/T(1) {most['over_one_row']:.2f}"
    return f"{one['gb_per_s']:.1f} GB/s, {one['share']:.0%}; {growth}"


def stage(args: argparse.Namespace, loaded: Loaded, gb_per_s: float) -> dict[str, Any]:
    """T(rows) of one sequence's rounds, whole and in parts."""
    figures: dict[str, Any] = {}
    parts = {"layers": loaded.stage, "dense layers": loaded.without_routing(), "attention": loaded.attention_alone()}
    arms = {f"round/{rows}": loaded.round(rows, args.context, 0.8) for rows in ROWS}
    arms |= {f"{name}/{rows}": loaded.layers(part, rows, args.context) for name, part in parts.items() for rows in ROWS}
    arms["no layers/1"] = loaded.layers(loaded.first_layers(0), 1, args.context)
    for name, took in medians_us(arms, args.repeats).items():
        part, rows = name.split("/")
        figures.setdefault(part, {})[rows] = took
    figures["experts"] = {rows: took - figures["dense layers"][rows] for rows, took in figures["layers"].items()}
    ratios = {part: {r: t / by["1"] for r, t in by.items()} for part, by in figures.items() if len(by) > 1}
    read = loaded.stage.one_row_bytes + weight_bytes(loaded.head)
    rate = read / figures["round"]["1"] / 1e3
    print(f"a round of one row: {figures['round']['1']:.0f} us, {rate:.1f} GB/s of weights, {rate / gb_per_s:.0%}")
    for part in ("round", "dense layers"):
        print(f"{part}: T(rows)/T(1) " + " ".join(f"{ratio:.2f}" for ratio in ratios[part].values()))
    weights = {"bytes": read, "gb_per_s": rate, "share": rate / gb_per_s}
    return {"context": args.context, "us": figures, "over_one_row": ratios, "one_row_weights": weights}


def attention(args: argparse.Namespace, loaded: Loaded, gb_per_s: float) -> dict[str, Any]:
    """Microseconds a layer for reading the cache, by context: what a round takes longer than at the shortest one."""
    alone, shortest = loaded.attention_alone(), MOST_ROWS
    layers = loaded.config.num_hidden_layers
    contexts = [shortest, *(context for context in args.contexts if context <= loaded.longest)]
    arms = {f"{c}/{rows}": loaded.layers(alone, rows, c) for c in contexts for rows in (1, 4)}
    took = medians_us(arms, args.repeats)
    figures: dict[str, Any] = {}
    for context in contexts[1:]:
        for rows in ("1", "4"):
            us = (took[f"{context}/{rows}"] - took[f"{shortest}/{rows}"]) / layers
            slot = loaded.stage.cache.bytes_per_block / layers / int(loaded.loader.shape.block_size)
            rate = (context - shortest) * slot / us / 1e3 if us > 0 else None
            share = rate / gb_per_s if rate else None
            figures.setdefault(str(context), {})[rows] = {"us": us, "gb_per_s": rate, "share": share}
        one, four = figures[str(context)]["1"]["us"], figures[str(context)]["4"]["us"]
        print(f"attention over {context} tokens: {one:.1f} us a layer for one row, {four:.1f} for four")
    return figures


def seconds_after(before: Callable[[], object], call: Callable[[], object]) -> float:
    before()
    return seconds(call)


def draft(args: argparse.Namespace, loaded: Loaded) -> dict[str, Any]:
    """Drafts over a round of one row, with a whole head and a cut one; each follows such a round, as in an engine."""
    cut = loaded.head_ids if loaded.head_ids is not None else np.arange(CUT_HEAD, dtype=np.int32)
    heads: dict[str, NDArray[np.int32] | None] = {"full head": None, "cut head": cut}
    round = loaded.round(1, args.context, 0.8)
    arms = {"round": partial(seconds, round)}
    for name, ids in heads.items():
        module = loaded.module(ids)
        calls = {depth: loaded.draft(module, depth, args.context, 0.8) for depth in DRAFTS}
        arms |= {f"{name}, {depth} drafts": partial(seconds_after, round, call) for depth, call in calls.items()}
    interleaved(arms, 3)
    took = {name: 1e6 * median(values) for name, values in interleaved(arms, args.repeats).items()}
    figures: dict[str, Any] = {"us": took, "cut_to": len(cut), "cut_is_the_checkpoints": loaded.head_ids is not None}
    for name in heads:
        first = took[f"{name}, 1 drafts"] / took["round"]
        last = DRAFTS[-1]
        further = (took[f"{name}, {last} drafts"] - took[f"{name}, 1 drafts"]) / (last - 1) / took["round"]
        figures[name] = {"first_over_round": first, "further_over_round": further}
        print(f"{name}: the first draft takes {first:.3f} of a round of one row, a further one {further:.3f}")
    return figures


def sample(args: argparse.Namespace, loaded: Loaded) -> Times:
    """Microseconds for the head and the draws, and for the draws alone."""
    head, context = loaded.head, loaded.context
    hidden = loaded.hidden[-MOST_ROWS:].contiguous()
    ways = {
        "T=0": draws(MOST_ROWS, 0),
        "T=0.8": draws(MOST_ROWS, 0.8),
        "T=0.8, top_p=0.95": draws(MOST_ROWS, 0.8, 0.95),
    }
    logits = context.sample(head, hidden, np.arange(len(hidden)), ways["T=0"])[0]
    arms: dict[str, Callable[[], object]] = {}
    for name, how in ways.items():
        for rows in (1, 4, 16):
            which = np.arange(min(rows, len(hidden)))
            arms[f"head and draw, {name}, {rows} rows"] = partial(context.sample, head, hidden, which, how[:rows])
            arms[f"draw, {name}, {rows} rows"] = partial(context.draw, logits[:rows], how[:rows])
    took = medians_us(arms, args.repeats)
    for name, each in took.items():
        print(f"{name}: {each:.0f} us")
    return took


def parts(args: argparse.Namespace, threads: int, gb_per_s: float) -> dict[str, Any]:
    """The sections that need a model, by name."""
    path = resolve_model(args.model)
    dtype = getattr(torch, args.dtype)
    longest = max([args.context, *(args.contexts if "attention" in args.only else [])])
    loaded = Loaded(path, threads=threads, longest=longest, dtype=dtype, quantization=args.quantization)
    figures: dict[str, Any] = {}
    if "stage" in args.only:
        figures["stage"] = stage(args, loaded, gb_per_s)
    if "attention" in args.only:
        figures["attention"] = attention(args, loaded, gb_per_s)
    if "draft" in args.only and loaded.config.num_nextn_predict_layers:
        figures["draft"] = draft(args, loaded)
    if "sample" in args.only:
        figures["sample_us"] = sample(args, loaded)
    return figures


def arguments() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scout", help="a bundled model's name, or a checkpoint's directory")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the model")
    parser.add_argument("--quantization", choices=["int8"], help="of the model")
    parser.add_argument("--threads", type=numbers, default=sorted({1, cores}))
    parser.add_argument("--context", type=int, default=128, help="tokens before a round")
    parser.add_argument("--contexts", type=numbers, default=[512, 2048, 4000], help="tokens that attention reads")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--only", type=words, default=SECTIONS, help=",".join(SECTIONS))
    parser.add_argument("--name", help="of the file of results (kernels-MODEL-DTYPE)")
    args = parser.parse_args()
    if unknown := set(args.only) - set(SECTIONS):
        parser.error(f"--only {unknown.pop()}: the sections are {', '.join(SECTIONS)}")
    return args


def main() -> None:
    args = arguments()
    bandwidth = {threads: read_bandwidth(threads, max(args.repeats // 10, 1)) for threads in args.threads}
    for threads, figures in bandwidth.items():
        print(f"read bandwidth, {counted(threads, 'thread')}: {figures['gb_per_s']:.1f} GB/s")
    rates = {threads: figures["gb_per_s"] for threads, figures in bandwidth.items()}
    record: dict[str, Any] = {"bandwidth": bandwidth, "last_level_cache_bytes": last_level_cache()}
    if "linear" in args.only:
        record["linear"] = linear(args, rates)
    record["by_threads"] = {}
    for threads in args.threads:
        print(f"{args.model}, {counted(threads, 'thread')}")
        record["by_threads"][threads] = parts(args, threads, rates[threads])
    name = args.name or f"kernels-{resolve_model(args.model).name}-{args.quantization or args.dtype}"
    print("written to", save(name, f"benchmarks/kernels/cpu_kernels.py {shlex.join(sys.argv[1:])}".strip(), record))


if __name__ == "__main__":
    main()
