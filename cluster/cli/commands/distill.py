"""`outrider distill`: trains a model's MTP module on text that the model generates, and measures the result."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from outrider.cluster.api.errors import SettingsError
from outrider.cluster.cli.options import setting_options
from outrider.cluster.config import load_settings, parse_assignments
from outrider.workers.config import EngineConfig, ParallelConfig
from outrider.workers.training.distill.settings import TrainingSettings
from outrider.workers.types.settings import settings_of

_DRY_RUN_SIZES = (8, 16)


@setting_options(TrainingSettings, ("depth", "trained", "loss", "steps", "zero_stage", "offload"))
def distill(
    model: Annotated[
        str, typer.Option(help="scout, or a checkpoint directory; with --dry-run also deepseek-r1.")
    ] = "scout",
    prompts: Annotated[Path | None, typer.Option(help="File of prompts: .jsonl, .json or lines of text.")] = None,
    work: Annotated[Path, typer.Option(help="Directory for harvest, checkpoints and report.")] = Path("distill"),
    out: Annotated[Path | None, typer.Option(help="Directory for the distilled checkpoint.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Part to run: harvest, train, export, head or evaluate (repeatable). [all]")
    ] = None,
    *,
    given: dict[str, Any],
    ranks: Annotated[int | None, typer.Option(min=1, help="Training processes per node. [1]")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes; run the same command on each.")] = 1,
    node_rank: Annotated[int, typer.Option(help="Number of this node, from 0.")] = 0,
    master: Annotated[str, typer.Option(metavar="HOST:PORT", help="Address of node 0.")] = "",
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting, e.g. window=512 (repeatable).")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", metavar="KEY=VALUE", help="A setting of the harvesting engine (repeatable)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print shapes and memory by part, and exit.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the results to this file.")] = None,
) -> None:
    """Train a model's MTP module on text that the model generates, export it, and measure the speed-up."""
    options: dict[str, Any] = {
        **given, "model": model, "work": str(work), "prompts": prompts, "out": out, "only": only,
        "ranks": ranks, "nodes": nodes, "node_rank": node_rank, "master": master,
    }  # fmt: skip
    chosen = {name: value for name, value in options.items() if value is not None}
    chosen |= parse_assignments(assignments or ())
    found = _dry_run(chosen) if dry_run else _run(chosen, _engine_settings(engine or ()))
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n")


def _run(given: dict[str, Any], engine: dict[str, Any]) -> dict[str, Any]:
    from outrider.cluster.cli.commands.distill_view import DistillView
    from outrider.workers.training.distill.job import make_job
    from outrider.workers.training.distill.run import run_job

    try:
        job = make_job(given, engine)
        with DistillView() as view:
            return run_job(job, view)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _dry_run(given: dict[str, Any]) -> dict[str, Any]:
    """Checks shapes and sharding on meta tensors. Returns bytes per GPU by part, for the given number of ranks."""
    from outrider.cluster.cli.commands.distill_view import show_footprints
    from outrider.cluster.planning.presets import load_shape
    from outrider.workers.training.distill.job import dry_run

    sizes = [given["ranks"] * given["nodes"]] if "ranks" in given else list(_DRY_RUN_SIZES)
    try:
        found = dry_run(given, load_shape(given["model"]), sizes)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    show_footprints(found)
    return found


def _engine_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """The given settings of an offline engine, by name, after checking them."""
    settings = load_settings(assignments=assignments)
    known = {*settings_of(EngineConfig)} - {"model", *settings_of(ParallelConfig)} | {"pipeline_parallel_size"}
    given = parse_assignments(assignments)
    if unknown := set(given) - known:
        raise SettingsError(f"--engine {', '.join(sorted(unknown))}: not a setting of an offline engine")
    return {name: getattr(settings, name) for name in given}
