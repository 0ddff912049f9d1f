"""One round of scout on this machine: what each part takes, and how it grows with the rows of one sequence.

    .venv/bin/python benchmarks/round.py [--model scout] [--context 128] [--repeats 60]

T(rows) is a verification round of one sequence with that many query rows: layers, head and draw. Interleaved; medians.
The profile times modules with hooks, which add a little to each.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from common import interleaved, median, save
from torch import Tensor, nn

from outrider.workers.config import EngineConfig, resolve_model
from outrider.workers.engine.round import ints
from outrider.workers.engine.runner import compute_threads
from outrider.workers.model.attention import Attention
from outrider.workers.model.batch import Batch
from outrider.workers.model.config import ModelConfig
from outrider.workers.model.deepseek import Stage
from outrider.workers.model.layers import RmsNorm
from outrider.workers.model.moe import MoE, Router
from outrider.workers.model.mtp import MtpModules
from outrider.workers.model.weights import Checkpoint
from outrider.workers.sampling_params import SamplingParams
from outrider.workers.speculation.sampling import SampleRow, sample

ROWS = range(1, 9)


class Bench:
    """A loaded model with one sequence of `context` tokens in its cache."""

    def __init__(self, model: str, context: int) -> None:
        config = EngineConfig(model=model)
        path = resolve_model(model)
        shape, checkpoint = ModelConfig.load(path), Checkpoint(path)
        torch.set_num_threads(compute_threads(shape.hidden_size, ROWS.stop, torch.get_num_threads()))
        own = {"numerics": "exact", "device": "cpu", "dtype": torch.float32, "block_size": config.block_size}
        self.stage = Stage.load(shape, checkpoint, range(shape.num_hidden_layers), **own)  # type: ignore[arg-type]
        self.mtp = MtpModules.load(shape, checkpoint, self.stage, **own)  # type: ignore[arg-type]
        self.blocks = ints(range(-(-(context + 32) // config.block_size)))
        self.stage.allocate_cache(len(self.blocks))
        self.mtp.allocate_cache(len(self.blocks))
        self.context, self.block_size, self.vocab = context, config.block_size, shape.vocab_size
        self.hidden = self.forward(context, start=0)

    def batch(self, rows: int, start: int, shift: int = 0) -> Batch:
        positions = ints(range(start, start + rows))
        return Batch.build(
            token_ids=ints(np.arange(rows) * 37 % self.vocab),
            rope_positions=positions,
            cache_positions=positions + shift,
            query_offsets=ints([0, rows]),
            write_from=ints([0]),
            block_offsets=ints([0, len(self.blocks)]),
            block_ids=self.blocks,
            first_cache_position=shift,
            block_size=self.block_size,
            device="cpu",
        )

    @torch.inference_mode()
    def forward(self, rows: int, start: int) -> Tensor:
        batch = self.batch(rows, start)
        return self.stage(batch, self.stage.embed(batch))

    @torch.inference_mode()
    def round(self, rows: int, temperature: float) -> None:
        hidden = self.forward(rows, self.context)
        sample(self.stage.logits(hidden), self._sample_rows(rows, temperature))

    @torch.inference_mode()
    def draft(self, temperature: float) -> None:
        """One step of the drafter: a row through the MTP module, its head and the draw."""
        state = self.mtp(self.batch(1, self.context - 1, shift=1), self.hidden[-1:])
        sample(self.mtp.logits(state), self._sample_rows(1, temperature))

    def _sample_rows(self, rows: int, temperature: float) -> list[SampleRow]:
        params = SamplingParams(temperature=temperature)
        return [
            SampleRow(params=params, seed=1, output_index=0, position=p, output_tokens=p, eos_token_ids=(1,))
            for p in range(rows)
        ]


def seconds(call: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    return run


def profile(bench: Bench, rows: int, repeats: int) -> dict[str, float]:
    """Milliseconds a round by part, of modules that contain no other listed part."""
    spent: dict[str, float] = defaultdict(float)
    began: dict[nn.Module, float] = {}
    names: dict[type[nn.Module], str] = {Attention: "attention", MoE: "experts", Router: "router", RmsNorm: "norms"}
    handles = []
    for module in bench.stage.modules():
        if type(module) in names:
            handles.append(module.register_forward_pre_hook(lambda m, _: began.update({m: time.perf_counter()})))
            handles.append(module.register_forward_hook(lambda m, *_: _add(spent, names[type(m)], began[m])))
    whole = median([seconds(lambda: bench.round(rows, 0.8))() for _ in range(repeats)])
    for handle in handles:
        handle.remove()
    parts = {name: 1e3 * total / repeats for name, total in spent.items()}
    parts["experts"] -= parts["router"]
    return {**parts, "rest (dense layer, head, draw, tables)": 1e3 * whole - sum(parts.values()), "round": 1e3 * whole}


def _add(spent: dict[str, float], name: str, began: float) -> None:
    spent[name] += time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scout")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=60)
    args = parser.parse_args()
    bench = Bench(args.model, args.context)
    arms = {f"{rows}": seconds(lambda rows=rows: bench.round(rows, 0.8)) for rows in ROWS}  # type: ignore[misc]
    arms |= {"1 greedy": seconds(lambda: bench.round(1, 0)), "draft step": seconds(lambda: bench.draft(0.8))}
    interleaved(arms, 5)
    times = {name: 1e3 * median(values) for name, values in interleaved(arms, args.repeats).items()}
    for name, took in times.items():
        print(f"{name:>10}  {took:7.2f} ms  {took / times['1']:5.2f} x one row")
    parts = {f"{rows} rows": profile(bench, rows, args.repeats) for rows in (1, 4)}
    for name, own in parts.items():
        print(name + ": " + ", ".join(f"{part} {took:.2f} ms" for part, took in own.items()))
    figures = {"threads": torch.get_num_threads(), "milliseconds": times, "profile_ms": parts}
    print("written to", save("round", f"benchmarks/round.py --context {args.context}", figures))


if __name__ == "__main__":
    main()
