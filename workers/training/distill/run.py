"""`outrider distill`, part by part: harvest, train, export, reduce the head, evaluate. Each part can be resumed."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from outrider.workers.llm import LLM
from outrider.workers.model.draft_head import DRAFT_HEAD_FILE
from outrider.workers.serving.harvest_shards import Harvest
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.training.distill.cut_head import (
    COVERAGES,
    FULL,
    best,
    make_variants,
    measure_heads,
    own_frequencies,
)
from outrider.workers.training.distill.drafts import Case, cases
from outrider.workers.training.distill.evaluation import EvaluationSize, compare
from outrider.workers.training.distill.export import export
from outrider.workers.training.distill.gang import run_training
from outrider.workers.training.distill.harvest import plan_tasks, run_harvest
from outrider.workers.training.distill.job import PARTS, Job, check_modules
from outrider.workers.training.distill.prompts import Prompt, load_prompts
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model.model_config import ModelConfig

_TEMPERATURES = (0.0, 0.8)  # at which drafts are measured


class Listener:
    """Callbacks for the progress of a job; the command line displays them."""

    def began(self, part: str) -> None: ...

    def harvested(self, done: int, total: int) -> None: ...

    def trained(self, report: dict[str, Any]) -> None: ...

    def measuring(self, what: str) -> None: ...

    def found(self, part: str, result: dict[str, Any]) -> None: ...


def run_job(job: Job, listener: Listener) -> dict[str, Any]:
    """Runs the requested parts in order. Returns each part's result by name, also saved in report.json.

    OutriderError or ValueError describes the problem in one line.
    """
    check_modules(job.training.model, ModelConfig.load(job.checkpoint))
    Path(job.training.work).mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for part in PARTS:
        if part in job.parts:
            listener.began(part)
            found[part] = _RUN[part](job, listener)
            listener.found(part, found[part])
            _keep(Path(job.training.work) / "report.json", part, found[part])
    return found


def _harvest(job: Job, listener: Listener) -> dict[str, Any]:
    folder = job.training.harvest_folder.resolve()
    tasks = plan_tasks(_prompts(job), job.temperatures, job.training.seed)

    def start() -> LLM:
        settings = {"enable_prefix_caching": False, **job.engine}
        return LLM(job.training.model, harvest_path=str(folder), **settings)

    run_harvest(start, tasks, folder, job.max_tokens, lambda done: listener.harvested(done, len(tasks)))
    outlines = Harvest(folder).outlines
    tokens = sum(len(sample.token_ids) - sample.prompt_tokens for sample in outlines)
    return {"texts": len(outlines), "tokens": tokens, "folder": str(folder)}


def _train(job: Job, listener: Listener) -> dict[str, Any]:
    settings, note = job.training, "was there already"
    if not settings.trained_file.exists():
        run_training(settings, job.machines, listener.trained)
        note = "trained"
    return {"trained": str(settings.trained_file), "note": note, "held_out": _looks(Path(settings.work))}


def _looks(work: Path) -> list[dict[str, Any]]:
    """The held-out measures of all runs up to this one."""
    metrics = work / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.is_file() else []
    return [{"step": row["step"], **row["held_out"]} for row in rows if "held_out" in row]


def _export(job: Job, listener: Listener) -> dict[str, Any]:
    assert job.out is not None
    if not job.training.trained_file.exists():
        raise OutriderError(f"{job.training.trained_file} is not there: train first")
    report = export(job.checkpoint, job.training.trained_file, job.out)
    return {**dataclasses.asdict(report), "summary": str(report), "out": str(job.out)}


def _head(job: Job, listener: Listener) -> dict[str, Any]:
    assert job.out is not None
    config, folder = ModelConfig.load(job.out), Path(job.training.work) / "heads"
    frequencies = own_frequencies(Harvest(job.training.harvest_folder), config.vocab_size, job.training.held_out)
    variants = make_variants(job.out, frequencies, COVERAGES, folder)
    with LLM(str(variants[FULL]), **job.engine) as llm:
        figures = measure_heads(llm, variants, frequencies, _cases(job), _extent(job), listener.measuring)
    chosen = best(figures)
    (job.out / DRAFT_HEAD_FILE).unlink(missing_ok=True)
    if chosen != FULL:
        (job.out / DRAFT_HEAD_FILE).write_bytes((variants[chosen] / DRAFT_HEAD_FILE).read_bytes())
    return {"chosen": chosen, "sizes": {name: each.as_json() for name, each in figures.items()}}


def _evaluate(job: Job, listener: Listener) -> dict[str, Any]:
    assert job.out is not None
    variants = {"before": str(job.checkpoint), "after": str(job.out)}
    with LLM(job.training.model, **job.engine) as llm:
        found = compare(llm, variants, _cases(job), _extent(job), listener.measuring)
    return {"depth": job.training.depth, "cases": [each.as_json() for each in found]}


_RUN: dict[str, Callable[[Job, Listener], dict[str, Any]]] = {
    "harvest": _harvest,
    "train": _train,
    "export": _export,
    "head": _head,
    "evaluate": _evaluate,
}


def _prompts(job: Job) -> list[Prompt]:
    assert job.prompts is not None
    return load_prompts(job.prompts, Tokenizer.load(job.checkpoint), job.max_prompt_tokens)


def _cases(job: Job) -> list[Case]:
    """Held-out prompts only. OutriderError if there are none."""
    held_out = [prompt for prompt in _prompts(job) if prompt.is_held_out(job.training.held_out)]
    if not held_out:
        raise OutriderError(f"no prompt of {job.prompts} is held out: give more of them, or a larger --held-out")
    return cases(held_out, _TEMPERATURES, job.measured_prompts)


def _extent(job: Job) -> EvaluationSize:
    return EvaluationSize(depth=job.training.depth)


def _keep(file: Path, part: str, result: dict[str, Any]) -> None:
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**before, part: result}, indent=1) + "\n")
