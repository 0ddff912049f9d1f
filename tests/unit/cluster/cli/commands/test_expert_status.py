"""What status shows of a replica's experts."""

from dataclasses import replace

from outrider.cluster.api.status import experts_from_wire
from outrider.cluster.cli.commands.status import experts_line
from outrider.cluster.controller.service import experts_to_wire
from outrider.workers.types.counters import ExpertFigures

FIGURES = ExpertFigures(imbalance={3: 1.5, 4: 1.1, 61: 1.0}, replacements=4, moves=9)


def test_it_comes_through_the_wire_whole() -> None:
    figures = replace(FIGURES, stopped=True)

    assert experts_from_wire(experts_to_wire(figures)) == figures


def test_one_line_tells_how_uneven_ranks_are_and_what_was_done() -> None:
    assert experts_line(FIGURES) == (
        "experts: heaviest rank 1.20 x the mean, 1.50 at layer 3, 4 layers rebalanced, 9 experts moved"
    )
    assert "a rank could not load an expert" in experts_line(replace(FIGURES, stopped=True))
