"""Makes the site's reference pages from the code they describe, whenever the site is built (a hook of mkdocs).

Commands from the command line's own parser, settings from their declarations, metrics from where they are defined, and
gRPC from the protobuf descriptors with the comments of the .proto files. Nothing here can drift: all is derived.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from outrider.cluster.cli.app import app
from outrider.cluster.config import ServeSettings
from outrider.cluster.gateway.access.settings import AccessSettings
from outrider.cluster.gateway.observability.known_metrics import KnownMetrics
from outrider.cluster.gateway.observability.metrics import GatewayMetrics
from outrider.cluster.gateway.requests.admission import AdmissionLimits
from outrider.cluster.gateway.requests.limits import RequestLimits
from outrider.cluster.gateway.settings import SharedGatewaySettings
from outrider.workers.config import EngineConfig, ParallelConfig
from outrider.workers.serving.observability import metrics as publishing
from outrider.workers.types.settings import settings_of

ROOT = Path(__file__).parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """mkdocs' event: the pages exist from here on."""
    pages = {
        "cli.md": commands(),
        "configuration.md": settings(),
        "metrics.md": metrics(),
        "grpc.md": grpc(),
        "values.md": values(),
        "glossary.md": glossary(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}", content=text))
    return files


def cell(text: object) -> str:
    """Fit for a table's cell."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def table(headings: tuple[str, ...], rows: Iterator[tuple[object, ...]]) -> str:
    lines = [headings, tuple("---" for _ in headings), *(tuple(map(cell, row)) for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def commands() -> str:
    root = typer.main.get_command(app)
    parts = ["# Commands", "*Reference, for engineers who run them.*", root.help or ""]
    parts += [command(name, one) for name, one in root.commands.items()]
    return "\n\n".join(parts) + "\n"


def command(name: str, one: Any) -> str:
    context = one.make_context(name, [], resilient_parsing=True)
    usage = " ".join(["outrider", name, *one.collect_usage_pieces(context)])
    rows = (
        (f"`{', '.join(option.opts)}`", default(option), option.help or "") for option in one.params if named(option)
    )
    return f"## `outrider {name}`\n\n{one.help}\n\n```text\n{usage}\n```\n\n{table(('option', 'default', ''), rows)}"


def named(option: Any) -> bool:
    return any(word.startswith("-") for word in option.opts)


def default(option: Any) -> str:
    value = option.show_default if isinstance(option.show_default, str) else option.default
    return "" if value in (None, False) or callable(value) else f"`{value}`"


SETTINGS = """# Settings

*Reference, for operators who configure a server.*

Settings of `outrider serve`: in a YAML file (`--config`), as `--set key=value`, or by option. An unknown key is an
error. The engine's settings are also the parameters of `LLM`."""
GROUPS = {
    "The engine": (EngineConfig, ParallelConfig),
    "The gateway": (SharedGatewaySettings, AccessSettings, AdmissionLimits, RequestLimits),
    "The cluster": (ServeSettings,),
}


def settings() -> str:
    return "\n\n".join([SETTINGS, *(f"## {title}\n\n{group(kinds)}" for title, kinds in GROUPS.items())]) + "\n"


def group(kinds: tuple[type, ...]) -> str:
    """The settings that these classes declare."""
    rows = (
        (f"`{name}`", f"`{one.default!r}`", one.values, one.text)
        for name, one in settings_of(ServeSettings).items()
        if one.group in kinds
    )
    return table(("setting", "default", "values", ""), rows)


def glossary() -> str:
    """The end of AGENTS.md."""
    _, _, terms = (ROOT / "AGENTS.md").read_text().partition("**Glossary**\n")
    return f"# Glossary\n\n*Reference, for engineers who read the code or these pages.*\n{terms}"


def metrics() -> str:
    registry = GatewayMetrics().registry
    KnownMetrics(registry)
    gateway = (
        (f"`{metric.name}{'_total' if metric.type == 'counter' else ''}`", metric.type, "", metric.documentation)
        for metric in registry.collect()
    )
    headings = ("metric", "kind", "labels", "")
    return (
        "# Metrics\n\n*Reference, for operators who monitor a cluster.*\n\n## The gateway's\n"
        "Served on `--metrics-port`, and over HTTP at `/metrics`, as its clients see "
        f"the cluster.\n\n{table(headings, gateway)}\n\n## The engine's\nExported by every rank through Ray's metrics "
        f"agent, which puts `ray_` in front.\n\n{table(headings, engine_metrics())}\n"
    )


def engine_metrics() -> Iterator[tuple[object, ...]]:
    """A row for each metric that a publisher makes, told by one that makes stand-ins for Ray's."""
    made: list[tuple[object, ...]] = []

    def stand_in(kind: str) -> Any:
        suffix = "_total" if kind == "counter" else ""

        def make(name: str, description: str = "", tag_keys: Sequence[str] = (), **options: Any) -> None:
            tags = ", ".join(tag_keys)
            made.append((f"`ray_{name}{suffix}`", kind, tags, description))

        return make

    kinds = {kind.capitalize(): stand_in(kind) for kind in ("counter", "gauge", "histogram")}
    with mock.patch.multiple(publishing, **kinds):
        publishing.MetricsPublisher("replica", 1, 0, stage=0, leads=True)
    return iter(made)


def grpc() -> str:
    parts = ["# gRPC", "*Reference, for engineers who write clients.*"]
    parts.append("Package `outrider.v1`. Reflection is on, so `grpcurl` lists these services.")
    for name in ("inference", "cluster"):
        text = (ROOT / "proto" / f"{name}.proto").read_text()
        parts.append(f"## {name}.proto\n\n```protobuf\n{text}```")
    return "\n\n".join(parts) + "\n"


def values() -> str:
    """The chart's own table, which a test keeps equal to its values.yaml."""
    text = (ROOT / "helm" / "outrider" / "README.md").read_text()
    head = "# Values of the Helm chart\n\n*Reference, for operators who deploy with Helm.*"
    return head + text.split("## Values", 1)[1]
