"""The `outrider` command. Each subcommand has its own module, imported when it runs, so that startup is fast.

Exit status: 0 on success, 2 on bad usage, 1 otherwise; an error is one line on stderr.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import outrider
from outrider.cluster.api.errors import InvalidRequestError, SettingsError
from outrider.cluster.cli.commands.distill import distill
from outrider.cluster.cli.connection import Connection
from outrider.cluster.cli.options import SERVE_OPTIONS, setting_options
from outrider.cluster.cli.plan_options import PlanOptions
from outrider.cluster.cli.sampling import Sampling
from outrider.cluster.cli.spread import spread
from outrider.cluster.config import ServeSettings, load_settings
from outrider.cluster.gateway.settings import GatewaySettings
from outrider.workers.types import logs
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.settings import settings_of

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serves DeepSeek-V3-family models with lossless speculative decoding by their own MTP module.",
)
_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]  # from typer's copy of click, which it does not export
_PACKAGES = {  # import name -> name for pip
    **{name: name for name in ("deepspeed", "kubernetes", "torch", "triton", "starlette", "uvicorn", "tokenizers")},
    "ray": "'ray[default]'",
    "opentelemetry": "'outrider[otel]'",
}
_LEVELS = ("debug", "info", "warning", "error")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"outrider {outrider.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    log_level: Annotated[str, typer.Option(help=f"Log level: {', '.join(_LEVELS)}.")] = "warning",
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks, and log everything.")] = False,
) -> None:
    if log_level not in _LEVELS:
        raise typer.BadParameter(f"must be one of {', '.join(_LEVELS)}, got {log_level!r}", param_hint="--log-level")
    context.obj = "debug" if debug else log_level
    logs.configure(context.obj)


@app.command()
@setting_options(ServeSettings, SERVE_OPTIONS)
def serve(
    *,
    context: typer.Context,
    given: dict[str, Any],
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting, e.g. max_num_seqs=16 (repeatable)."),
    ] = None,
) -> None:
    """Serve a model: start its ranks on Ray, and a gateway."""
    _require_ray()
    from outrider.cluster.cli.commands.serve import run_serve

    run_serve(load_settings(config, assignments or (), given), log_level=context.obj)


@app.command()
@setting_options(GatewaySettings, settings_of(GatewaySettings))
def gateway(*, given: dict[str, Any]) -> None:
    """Run another gateway for a running cluster."""
    from outrider.cluster.cli.commands.gateway import gateway_settings
    from outrider.cluster.gateway.server import run_gateway

    run_gateway(gateway_settings(given))


@app.command()
@spread
def generate(
    prompt: Annotated[str | None, typer.Argument(help='Prompt; "-" reads it from standard input.')] = None,
    source: Annotated[Path | None, typer.Option("--input", help="JSONL file of requests, instead of PROMPT.")] = None,
    target: Annotated[
        Path | None, typer.Option("--output", help="JSONL file for the answers to --input; existing answers are kept.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Concurrent requests of --input.")] = 32,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite --output.")] = False,
    traceparent: Annotated[str, typer.Option(envvar="TRACEPARENT", help="Parent span (W3C Trace Context).")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the complete answer as JSON.")] = False,
    *,
    sampling: Sampling,
    gateway: Connection,
) -> None:
    """Generate text for a prompt, streamed, or for every line of a file."""
    from outrider.cluster.cli.commands.generate import check_sources, run_batch, run_generate

    check_sources(prompt, source, target)
    request = {**sampling.parameters(), "traceparent": traceparent}
    if source is not None and target is not None:
        run_batch(source, target, gateway, request, concurrency=concurrency, overwrite=overwrite)
    elif prompt is not None:
        run_generate(sys.stdin.read() if prompt == "-" else prompt, gateway, request, as_json=as_json)


@app.command()
@spread
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    *,
    gateway: Connection,
) -> None:
    """Show the replicas, stages and ranks of a cluster, and their load."""
    from outrider.cluster.cli.commands.status import run_status

    run_status(gateway, as_json=as_json)


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="Caller's name, shown in the gateway's log.")],
    file: Annotated[Path, typer.Option(help="The gateway's --auth-token-file; created if missing.")],
    role: Annotated[list[str], typer.Option(help="inference or admin (repeatable).")],
) -> None:
    """Create a bearer token: print it once, and add its hash to the gateway's file."""
    from outrider.cluster.cli.commands.token import run_token

    run_token(name, role, file)


@app.command()
@spread
def top(
    interval_s: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds between updates.")] = 1.0,
    looks: Annotated[int | None, typer.Option(min=1, help="Number of updates; by default until interrupted.")] = None,
    *,
    gateway: Connection,
) -> None:
    """Show each replica's speed and speculation figures, live."""
    from outrider.cluster.cli.commands.top import run_top

    run_top(gateway, interval_s=interval_s, looks=looks)


@app.command()
@spread
def bench(
    rate: Annotated[list[float] | None, typer.Option(help="Requests per second (repeatable). [4]")] = None,
    seconds: Annotated[float, typer.Option(help="Duration of each rate.")] = 20.0,
    speculation: Annotated[
        list[str] | None, typer.Option(help="auto, off, or a fixed draft depth 1..16 (repeatable). [off, auto]")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Output tokens per request.")] = 64,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0: greedy.")] = 0.8,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
    *,
    gateway: Connection,
) -> None:
    """Measure latency under load: requests arrive at random, timed as their clients see them."""
    from outrider.cluster.cli.commands.bench import run_bench, windows

    rates, speculations = rate or [4.0], speculation or ["off", "auto"]
    planned = windows(rates, speculations, seconds=seconds, max_tokens=max_tokens, temperature=temperature)
    run_bench(gateway, planned, json_file)


@app.command()
@spread
def plan(*, options: PlanOptions) -> None:
    """Plan how to split a model over GPUs: what fits, and how fast it will be. Needs no GPU."""
    from outrider.cluster.cli.commands.plan import run_plan

    run_plan(options)


@app.command()
@spread
def scale(
    replicas: Annotated[int, typer.Argument(min=0, help="Desired number of replicas.")],
    *,
    gateway: Connection,
) -> None:
    """Set the number of replicas. Returns immediately; removed replicas finish their requests first."""
    from outrider.cluster.cli.commands.status import run_scale

    run_scale(gateway, replicas)


@app.command()
@spread
def drain(
    replica: Annotated[str, typer.Argument(help="Name, as shown by `outrider status`.")],
    *,
    gateway: Connection,
) -> None:
    """Remove one replica once its requests have finished, and lower the number by one. Returns immediately."""
    from outrider.cluster.cli.commands.status import run_drain

    run_drain(gateway, replica)


@app.command()
@spread
def upgrade(
    timeout_s: Annotated[float, typer.Option("--timeout", min=1.0, help="Seconds for all of it.")] = 7200.0,
    *,
    gateway: Connection,
) -> None:
    """Replace every replica, one after the other. Needs resources for one additional replica."""
    from outrider.cluster.cli.commands.upgrade import run_upgrade

    run_upgrade(gateway, timeout_s=timeout_s)


@app.command()
def demo(
    context: typer.Context,
    json_file: Annotated[Path, typer.Option("--json", help="File for the figures.")] = Path("demo.json"),
    report_file: Annotated[
        Path | None, typer.Option("--report", help="Also write an HTML page: plots, and texts round by round.")
    ] = None,
    model: Annotated[str, typer.Option(help="scout, or a checkpoint's directory.")] = "scout",
    prompts: Annotated[int, typer.Option(min=1, help="Prompts per kind of text.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens per prompt; fewer on a slow machine.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of each prompt; fewer after a minute.")] = 5,
) -> None:
    """Serve a model on two local stages, and compare speculation off and auto: speed and text."""
    _require_ray()
    from outrider.cluster.cli.commands.demo import DemoSize, run_demo

    extent = DemoSize(max_tokens, repeats)
    run_demo(json_file, report_file=report_file, model=model, prompts=prompts, extent=extent, log_level=context.obj)


app.command()(distill)


@app.command()
@spread
def swap(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint directory on the replicas' machines.")],
    *,
    gateway: Connection,
) -> None:
    """Replace the MTP module of every replica by another checkpoint's, between two rounds. No token changes."""

    with gateway.client() as client:
        typer.echo(f"drafting with {checkpoint}: {', '.join(client.swap_drafter(checkpoint))}")


def _require_ray() -> None:
    """Raises a clear error if Ray is not installed, before the imports that need it."""
    from outrider.cluster.ray_session import import_ray

    import_ray()


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs a command line and returns its exit status."""
    try:
        status = app(args=list(arguments), prog_name="outrider", standalone_mode=False)
    except _USAGE_ERROR as error:
        return _refuse(getattr(error, "format_message", error.__str__)(), 2)
    except (SettingsError, InvalidRequestError) as error:
        return _fail(error, 2, arguments)
    except OutriderError as error:
        return _fail(error, 1, arguments)
    except ModuleNotFoundError as error:
        if (package := _PACKAGES.get((error.name or "").partition(".")[0])) is None:
            raise
        return _fail(
            OutriderError(f"this command needs {error.name}, which is not installed: pip install {package}"),
            1,
            arguments,
        )
    except (KeyboardInterrupt, typer.Abort):
        return _refuse("interrupted", 1)
    except BrokenPipeError:  # the reader of our output has closed it
        sys.stderr.close()
        return 1
    return status if isinstance(status, int) else 0


def _fail(error: Exception, status: int, arguments: Sequence[str]) -> int:
    if "--debug" in arguments:
        raise error
    return _refuse(str(error), status)


def _refuse(message: str, status: int) -> int:
    if message:  # empty if a command without arguments has printed its help
        print(f"error: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201  # what the user is to read
    return status


if __name__ == "__main__":
    main()
