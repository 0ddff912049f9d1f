"""Terminal output of the demo: a table of its figures, and an output with coloured accepted drafts."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from outrider.cluster.demo.report import DemoReport, DomainReport
from outrider.cluster.demo.runs import Delta
from outrider.workers.text.detokenizer import Detokenizer
from outrider.workers.text.tokenizer import Tokenizer

DRAFTED = "green"
POSITIONS = 4  # draft positions shown; demo.json has all


def table(report: DemoReport) -> Table:
    """One row per domain."""
    title = f"{report.model} on {report.pipeline_parallel_size} stages, one request at a time"
    headings = ("prompts", "tok/s off", "auto", "speed-up", "tok/round", f"accepted at 1..{POSITIONS}")
    view = Table(*headings, title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name, domain in report.domains.items():
        view.add_row(_label(name), *_figures(domain))
    return view


def verdict(report: DemoReport) -> Text:
    if report.identical:
        return Text("identical: speculation changed no token of any text", style="bold green")
    return Text("NOT identical: speculation changed a text", style="bold red")


def _label(name: str) -> str:
    kind, _, sampled = name.partition("_")
    return f"{kind}, {'T=0.8' if sampled else 'greedy'}"


def _figures(domain: DomainReport) -> list[str]:
    return [
        f"{domain.tokens_per_second_off:.1f}",
        f"{domain.tokens_per_second_auto:.1f}",
        f"{domain.speedup:.2f}x",
        f"{domain.mean_tokens_per_round:.2f}",
        " ".join(f"{share:.2f}" for share in domain.acceptance_per_position[:POSITIONS]),
    ]


def coloured(prompt: str, deltas: Sequence[Delta], tokenizer: Tokenizer) -> Text:
    """The end of the prompt, dimmed, then the output with accepted drafts in colour.

    A message that covers several rounds does not say which tokens were drafts, so it is not coloured.
    """
    view = Text()
    view.append(prompt[-160:], style="dim")
    detokenizer = Detokenizer(tokenizer)
    for delta in deltas:
        one_round = len(delta.token_ids) <= delta.accepted + 1
        for place, token_id in enumerate(delta.token_ids):
            style = DRAFTED if one_round and place < delta.accepted else ""
            view.append(detokenizer.add(token_id), style=style)
    view.append(detokenizer.flush())
    return view
