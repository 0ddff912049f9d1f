import io

import pytest
from rich.console import Console
from rich.text import Text
from small_tokenizer import write_tokenizer

from outrider.cluster.demo.report import DemoReport, DomainReport
from outrider.cluster.demo.runs import Delta
from outrider.cluster.demo.view import DRAFTED, coloured, table, verdict
from outrider.workers.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    loaded = Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("model")))
    assert loaded is not None
    return loaded


def drafted(view: Text) -> str:
    """The part of a text that is coloured as accepted drafts."""
    return "".join(view.plain[span.start : span.end] for span in view.spans if span.style == DRAFTED)


def test_the_accepted_tokens_of_a_round_are_coloured_and_the_models_own_is_not(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("abcdef")
    assert len(ids) >= 3
    rounds = [Delta(tuple(ids[:-1]), len(ids) - 2), Delta((ids[-1],), 0)]

    view = coloured("prompt: ", rounds, tokenizer)

    assert view.plain == "prompt: abcdef"
    assert drafted(view) == tokenizer.decode(ids[:-2])


def test_a_message_of_several_rounds_does_not_guess_which_tokens_were_drafts(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("abcdef")

    view = coloured("", [Delta(tuple(ids), 1)], tokenizer)

    assert (view.plain, drafted(view)) == ("abcdef", "")


def a_report(identical: bool) -> DemoReport:
    domain = DomainReport(
        prompts=4,
        tokens=256,
        tokens_per_second_off=80.04,
        tokens_per_second_auto=120.06,
        speedup=1.5,
        acceptance_per_position=[0.9, 0.8, 0.7, 0.6, 0.5],
        mean_tokens_per_round=2.345,
    )
    return DemoReport(
        model="m", pipeline_parallel_size=2, identical=identical, domains={"code": domain, "code_sampled": domain}
    )


def test_a_row_of_the_table_fits_on_a_line_of_eighty_characters() -> None:
    printed = io.StringIO()

    Console(width=80, file=printed).print(table(a_report(identical=True)))

    lines = printed.getvalue().splitlines()
    (row,) = [line for line in lines if "greedy" in line]
    assert row.split() == ["code,", "greedy", "80.0", "120.1", "1.50x", "2.35", "0.90", "0.80", "0.70", "0.60"]


def test_the_verdict_is_the_reports() -> None:
    assert verdict(a_report(identical=True)).plain.startswith("identical")
    assert verdict(a_report(identical=False)).plain.startswith("NOT identical")
