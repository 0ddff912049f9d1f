"""A plan as an HTML page: layers, heads and experts of each rank, and the parts of memory and time.

The page has no scripts and loads nothing from the network.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from outrider.cluster.planning.candidate import Candidate, RankPlan

_COLOURS = 8


def page(model: str, best: Candidate, plans: Sequence[Candidate]) -> str:
    """The drawing of the best plan, and a table of `plans`."""
    shape = best.shapes.model
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=True, trim_blocks=True
    ).get_template("plan.html.jinja")
    return template.render(
        model=model,
        best=best,
        plans=plans,
        nodes=_nodes(best),
        layers=shape.num_hidden_layers,
        heads=shape.num_attention_heads,
        experts=shape.n_routed_experts,
        drafts=best.workload.draft_steps,
        hidden=best.split.spread and best.split.data > 1,
        memory=_memory(best),
        times=[{part: seconds * 1e3 for part, seconds in stage.items()} for stage in best.decode_parts],
        strip=_strip,
        bars=_bars,
    )


def _nodes(plan: Candidate) -> list[list[RankPlan | None]]:
    """The devices of every used node; None for a device without a rank."""
    width = plan.fleet.gpus_per_node
    used = -(-plan.split.world_size // width)
    devices: list[list[RankPlan | None]] = [[None] * width for _ in range(used)]
    for rank in plan.ranks():
        devices[rank.node][rank.device] = rank
    return devices


def _memory(plan: Candidate) -> list[dict[str, float]]:
    """Gigabytes per rank of each stage, by part, including free memory."""
    return [
        {
            **{part: size / 1e9 for part, size in stage.weights.items()},
            "buffers": stage.buffers / 1e9,
            "runtime": stage.runtime / 1e9,
            "cache": stage.cache_bytes / 1e9,
            "free": (stage.device - stage.fixed - stage.cache_bytes) / 1e9,
        }
        for stage in plan.memories
    ]


def _strip(part: tuple[int, int], whole: int) -> Markup:
    """A line in which a rank's part is highlighted."""
    own = f'<rect class="own" x="{part[0]}" width="{part[1] - part[0]}" height="1"/>'
    line = f'<rect class="all" width="{whole}" height="1"/>'
    return Markup(f'<svg class="strip" viewBox="0 0 {whole} 1" preserveAspectRatio="none">{line}{own}</svg>')


def _bars(stages: Sequence[dict[str, float]], unit: str) -> Markup:
    """A stacked bar per stage, on a common scale, with a legend."""
    parts = [part for part in dict.fromkeys(part for stage in stages for part in stage) if part != "free"]
    colours = {part: f"var(--s{number % _COLOURS})" for number, part in enumerate(parts)}
    longest = max(sum(stage.values()) for stage in stages)
    lines = [
        f'<p>stage {number}: {sum(v for k, v in stage.items() if k != "free"):.2f} {unit}</p><div class="bar">'
        + "".join(
            f'<span style="width:{100 * value / longest:.3f}%;background:{colours[part]}"'
            f' title="{escape(part)}: {value:.3f} {unit}"></span>'
            for part, value in stage.items()
            if part in colours and value > 0
        )
        + "</div>"
        for number, stage in enumerate(stages)
    ]
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{escape(part)}</span>' for part, colour in colours.items()
    )
    return Markup(f'<p class="legend">{legend}</p>{"".join(lines)}')
