"""What more rows cost: a round of 1 to 4 rows by part, a draft in 8 bits, and what the arithmetic alone would take.

    python benchmarks/engine/round_by_rows.py [--rows 1,2,3,4] [--temperatures 0,0.8] [--context 128] [--threads 1]

Batch 1, all in the compiled kernels. A part is the difference between rounds with and without it
(kernels/model_parts.py). The limit of a round is the larger of two times: of reading once each weight and each slot
that its rows need (the experts that they choose are counted) at the rate of a plain read of as many bytes, again and
again; and of its multiplications at the rate of torch's matrix product. The limit of a draft is that of its bytes; a
further one can beat it, since a core's own cache holds some of them. Interleaved; a figure is the mean of the fastest
quarter: other work only adds.
"""

import argparse
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
from benchmarks.common.repeats import interleaved, seconds
from benchmarks.common.results import save
from benchmarks.engine.round_parts import SHORTEST, VARIANTS, stage_parts
from benchmarks.kernels.bandwidth import STREAMS, compiled_reader
from benchmarks.kernels.linears import weight_bytes
from benchmarks.kernels.model_parts import PLACES, Loaded, one_row_bytes
from outrider.kernels.cpu.library import INT8, ROUNDED, Layer
from outrider.kernels.cpu.packing import private_memory
from outrider.workers.config import resolve_model
from outrider.workers.loading.model import useful_threads
from outrider.workers.model.compiled.model import CompiledModules
from outrider.workers.types.model.model_config import ModelConfig

DEPTH = 5  # further drafts are timed as these less the first
DRAFT_KINDS = {"8-bit weights": INT8, "inputs rounded too": ROUNDED}
CUT_HEAD = 1024  # tokens


def fastest_us(arms: Mapping[Any, Callable[[], object]], repeats: int) -> dict[Any, float]:
    timed = {arm: partial(seconds, call) for arm, call in arms.items()}
    interleaved(timed, 3)
    return {
        arm: 1e6 * float(np.mean(sorted(took)[: -(-repeats // 4)])) for arm, took in interleaved(timed, repeats).items()
    }


def read_rate(size: int, threads: int) -> float:
    """Bytes a second of the fastest plain read of `size` bytes, which caches hold as far as they hold such weights."""
    reader = compiled_reader()
    if reader is None:
        sys.exit("benchmarks/engine/round_by_rows.py needs a C++ compiler, to know how fast this machine reads")
    memory = np.frombuffer(private_memory(size + 64), dtype=np.uint8)
    memory = memory[-memory.ctypes.data % 64 :][: size // 64 * 64]
    memory.fill(1)
    arms = {s: partial(reader, memory.ctypes.data, len(memory) // 64, threads, s) for s in STREAMS}
    return 1e6 * len(memory) / min(fastest_us(arms, 40).values())


def multiply_rate(threads: int) -> float:
    """Multiplications with addition a second."""
    before, a = torch.get_num_threads(), torch.randn(512, 512)
    torch.set_num_threads(threads)
    took = fastest_us({"mm": partial(torch.mm, a, a)}, 60)["mm"]
    torch.set_num_threads(before)
    return 1e6 * 512**3 / took


def experts_of(loaded: Loaded, rows: int, context: int) -> float:
    """Distinct experts of all layers that a round chooses, the mean over rounds."""
    layers, experts = loaded.config.num_hidden_layers, loaded.config.n_routed_experts
    loads = np.zeros((layers, experts), dtype=np.int64)
    counters = iter(loads)

    def count(layer: Layer) -> None:
        own = next(counters)
        if layer.routed:
            layer.routed.contents.loads = own.ctypes.data

    stage = loaded.stage.variant(count)
    run, found = loaded.layers(stage, rows, context), []
    for _ in range(PLACES):
        loads[:] = 0
        run()
        found.append(np.count_nonzero(loads))
    for layer in stage._layers:
        if layer.routed:
            layer.routed.contents.loads = None
    return float(np.mean(found))


def round_limits(loaded: Loaded, rows: list[int], context: int, rate: float, multiplies: float) -> dict[int, Any]:
    """Of a round by its rows: bytes, multiplications, and microseconds at those rates."""
    routed = next(layer.routed.contents.slots[0] for layer in loaded.stage._layers if layer.routed)
    expert, chosen = weight_bytes(routed.gate_up) + weight_bytes(routed.down), loaded.config.num_experts_per_tok
    moe_layers = sum(1 for layer in loaded.stage._layers if layer.routed)
    one = loaded.stage.one_row_bytes + weight_bytes(loaded.head)
    weights_of_a_byte = loaded.head.outputs * loaded.head.inputs / weight_bytes(loaded.head)
    slot = loaded.stage.cache.bytes_per_block / int(loaded.loader.shape.block_size)
    limits = {}
    for count in rows:
        experts = experts_of(loaded, count, context)
        read = one + (experts - chosen * moe_layers) * expert + (context + count) * slot
        products = count * (one * weights_of_a_byte + context * slot / 4)  # the cache is in float32
        bytes_us, multiply_us = 1e6 * read / rate, 1e6 * products / multiplies
        limits[count] = {"experts": experts, "bytes": read, "bytes_us": bytes_us, "multiply_us": multiply_us}
        limits[count]["us"] = max(bytes_us, multiply_us)
    return limits


def rounds(loaded: Loaded, args: argparse.Namespace) -> dict[str, dict[int, Any]]:
    """By temperature and rows: microseconds of a round, and by part."""
    variants = (loaded.first_layers(0), loaded.attention_alone(), loaded.without_routing(), loaded.stage)
    arms: dict[tuple[Any, ...], Callable[[], object]] = {}
    for count in args.rows:
        for name, variant in zip(VARIANTS, variants, strict=True):
            arms[name, count] = loaded.layers(variant, count, SHORTEST)
        arms["context", count] = loaded.layers(loaded.stage, count, args.context)
        for temperature in args.temperatures:
            arms["round", count, temperature] = loaded.round(count, args.context, temperature)
    took = fastest_us(arms, args.repeats)
    found: dict[str, dict[int, Any]] = {}
    for temperature in args.temperatures:
        for count in args.rows:
            whole, layers = took["round", count, temperature], took["context", count]
            short = {name: took[name, count] for name in VARIANTS} | {"round": took["layers", count] + whole - layers}
            parts = stage_parts(short, layers - took["layers", count])
            found.setdefault(f"T={temperature:g}", {})[count] = {"us": whole, "parts_us": parts}
    return found


def drafts(loaded: Loaded, args: argparse.Namespace, rate: float) -> dict[str, Any]:
    """By head: microseconds of the first draft behind a round and of a further one, in each kind of weights."""
    heads: dict[str, NDArray[np.int32] | None] = {"whole head": None, "cut head": np.arange(CUT_HEAD, dtype=np.int32)}
    after, found = loaded.round(1, args.context, 0.8), {}
    for head, ids in heads.items():
        arms: dict[tuple[str, int], Callable[[], float]] = {}
        for name, kind in DRAFT_KINDS.items():
            loaded.loader._draft_kind = kind
            module = loaded.module(ids)
            for depth in (1, 1 + DEPTH):
                arms[name, depth] = partial(_seconds_after, after, loaded.draft(module, depth, args.context, 0.8))
        took = {
            arm: 1e6 * float(np.mean(sorted(each)[: -(-args.repeats // 4)]))
            for arm, each in interleaved(arms, args.repeats).items()
        }
        read = draft_bytes(loaded, module, args.context)
        found[head] = {"bytes": read, "limit_us": 1e6 * read / rate}
        for name in DRAFT_KINDS:
            first = took[name, 1]
            found[head][name] = {"first_us": first, "further_us": (took[name, 1 + DEPTH] - first) / DEPTH}
    return found


def _seconds_after(before: Callable[[], object], call: Callable[[], object]) -> float:
    before()
    return seconds(call)


def draft_bytes(loaded: Loaded, module: CompiledModules, context: int) -> int:
    """What one draft reads: the module's weights, its slots of the cache, and the head."""
    own, shape = module._modules[0], loaded.loader.shape
    weights = [own.join.contents, module._head.linear]
    slots = context * module.cache.bytes_per_block // int(shape.block_size)
    return one_row_bytes(own.layer.contents, shape) + sum(map(weight_bytes, weights)) + slots


def show(record: dict[str, Any]) -> None:
    limits = record["limits"]
    for temperature, by_rows in record["rounds"].items():
        one = next(iter(by_rows))
        print(f"{temperature}, rows: " + ", ".join(f"{count}" for count in by_rows))
        for part in by_rows[one]["parts_us"]:
            line(part, [each["parts_us"][part] for each in by_rows.values()])
        whole = [each["us"] for each in by_rows.values()]
        line("a round", whole)
        least = [limits[count]["us"] for count in by_rows]
        line("limit", least)
        print("  over one row".ljust(34) + " ".join(f"{us / whole[0]:8.2f}" for us in whole))
        print("  over one row, limit".ljust(34) + " ".join(f"{us / least[0]:8.2f}" for us in least))
    for head, found in record["drafts"].items():
        print(f"{head}: {found['bytes'] / 1e6:.2f} MB a draft, limit {found['limit_us']:.1f} us")
        for name in DRAFT_KINDS:
            print(f"  {name:<30}  first {found[name]['first_us']:6.1f} us, further {found[name]['further_us']:6.1f} us")


def line(name: str, values: list[float]) -> None:
    print(f"  {name:<32}" + " ".join(f"{us:8.1f}" for us in values))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scout", help="a bundled model's name, or a checkpoint's directory")
    parser.add_argument("--rows", type=numbers, default=[1, 2, 3, 4])
    parser.add_argument("--temperatures", type=lambda text: [float(t) for t in words(text)], default=[0.0, 0.8])
    parser.add_argument("--context", type=int, default=128, help="tokens before a round")
    parser.add_argument("--threads", type=int, help="(as many as an engine would take)")
    parser.add_argument("--repeats", type=int, default=120)
    parser.add_argument("--name", help="of the file of results (rows-MODEL-THREADS)")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    path = resolve_model(args.model)
    threads = args.threads or useful_threads(ModelConfig.load(path).hidden_size, torch.get_num_threads())
    loaded = Loaded(path, threads=threads, longest=args.context, dtype=torch.float32)
    size = loaded.stage.one_row_bytes + weight_bytes(loaded.head)
    rate, multiplies = read_rate(size, threads), multiply_rate(threads)
    print(f"{threads} threads: reads {rate / 1e9:.1f} GB/s, {multiplies / 1e9:.0f} G multiplications a second")
    record = {
        "threads": threads,
        "context": args.context,
        "bytes_per_s": rate,
        "multiplications_per_s": multiplies,
        "limits": round_limits(loaded, args.rows, args.context, rate, multiplies),
        "rounds": rounds(loaded, args),
        "drafts": drafts(loaded, args, rate) if loaded.config.num_nextn_predict_layers else {},
    }
    show(record)
    name = args.name or f"rows-{path.name}-{threads}"
    print("written to", save(name, f"benchmarks/engine/round_by_rows.py {shlex.join(sys.argv[1:])}".strip(), record))


if __name__ == "__main__":
    main()
