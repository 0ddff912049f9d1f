"""Draft heads reduced to the model's own frequent tokens: candidate sizes, and the fastest one.

A head with fewer tokens makes a draft cheaper, but cannot propose the other tokens. The best size is measured on the
engine that will use it: tokens per second on held-out prompts, full and reduced heads in turn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from outrider.workers.llm import LLM
from outrider.workers.model.draft_head import DRAFT_HEAD_FILE
from outrider.workers.serving.harvest_shards import Harvest
from outrider.workers.training.distill.drafts import Case
from outrider.workers.training.distill.evaluation import Comparison, EvaluationSize, compare
from outrider.workers.training.distill.prompts import is_held_out
from outrider.workers.training.draft_head import Frequencies, most_frequent
from outrider.workers.types.model.model_config import ModelConfig

COVERAGES = (0.9, 0.95, 0.98, 0.99)
FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadFigures:
    """The measurements of one size over all cases. Ratios are relative to the full head."""

    tokens: int
    coverage: float  # share of the training continuations' tokens
    draft_time_saved: float  # share
    tokens_per_round: float  # ratio
    gain: float  # ratio of tokens per second, speculation auto

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def own_frequencies(harvest: Harvest, vocab_size: int, held_out: float) -> Frequencies:
    """The frequency of each token in the model's own continuations, [vocab], without prompts and held-out text."""
    total = np.zeros(vocab_size)
    for sample in harvest.outlines:
        if not is_held_out(sample.token_ids[: sample.prompt_tokens].tolist(), held_out):
            total += np.bincount(sample.token_ids[sample.prompt_tokens :], minlength=vocab_size)
    return np.asarray(total / max(1.0, total.sum()))


def make_variants(
    checkpoint: Path, frequencies: Frequencies, coverages: Sequence[float], folder: Path
) -> dict[str, Path]:
    """Checkpoint folders (of links) with the full head and with one for each coverage; by name."""
    eos = ModelConfig.load(checkpoint).eos_token_ids
    variants = {FULL: _linked(checkpoint, folder / FULL)}
    for coverage in coverages:
        ids = most_frequent(frequencies, coverage, eos)
        path = _linked(checkpoint, folder / f"{coverage:g}")
        save_file({"token_ids": ids}, path / DRAFT_HEAD_FILE)
        variants[f"{coverage:g}"] = path
    return variants


def measure_heads(
    llm: LLM,
    variants: Mapping[str, Path],
    frequencies: Frequencies,
    cases: Sequence[Case],
    extent: EvaluationSize,
    report: Callable[[str], None],
) -> dict[str, HeadFigures]:
    """The figures of each variant by name; the full head's ratios are 1."""
    found = compare(llm, {name: str(path) for name, path in variants.items()}, cases, extent, report)
    return {name: _figures(path, name, frequencies, found) for name, path in variants.items()}


def best(figures: Mapping[str, HeadFigures]) -> str:
    """The variant with the greatest gain, or the full head if none is faster."""
    return max(figures, key=lambda name: (figures[name].gain, name == FULL))


def _figures(path: Path, name: str, frequencies: Frequencies, found: Sequence[Comparison]) -> HeadFigures:
    ids = _ids(path, len(frequencies))
    drafts = [(each.drafts[name], each.drafts[FULL]) for each in found]
    speeds = [each.tokens_per_second[name] / each.tokens_per_second[FULL] for each in found]
    return HeadFigures(
        tokens=len(ids),
        coverage=float(frequencies[ids].sum()),
        draft_time_saved=1 - _mean([own.draft_ms_per_round / full.draft_ms_per_round for own, full in drafts]),
        tokens_per_round=_mean([own.tokens_per_round / full.tokens_per_round for own, full in drafts]),
        gain=_mean(speeds),
    )


def _ids(path: Path, vocab_size: int) -> Any:
    file = path / DRAFT_HEAD_FILE
    return load_file(file)["token_ids"] if file.is_file() else np.arange(vocab_size)


def _linked(checkpoint: Path, folder: Path) -> Path:
    """`folder` with a link to every file of the checkpoint except its draft head."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for file in checkpoint.iterdir():
        if file.is_file() and file.name != DRAFT_HEAD_FILE:
            (folder / file.name).symlink_to(file.resolve())
    return folder


def _mean(ratios: Sequence[float]) -> float:
    """The geometric mean."""
    return float(np.exp(np.mean(np.log(ratios))))
