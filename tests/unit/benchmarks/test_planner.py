import planner
import pytest


@pytest.mark.parametrize("row", [row for row in planner.published() if row.required], ids=lambda row: row.name)
def test_a_prediction_is_within_a_quarter_of_the_published_figure(row: planner.Published) -> None:
    assert planner.predict(row) == pytest.approx(row.value, rel=planner.ALLOWED)


@pytest.mark.parametrize("record", list(planner.exchanges()), ids=lambda record: f"{record['ranks']} ranks")
def test_an_exchange_takes_about_as_long_as_deepeps_kernels_did(record: dict[str, float]) -> None:
    for trip in ("dispatch", "combine"):
        assert record[f"{trip}_us_predicted"] == pytest.approx(record[f"{trip}_us"], rel=0.15)


def test_every_row_has_a_source_and_says_what_was_assumed() -> None:
    assert all(row.source and row.assumed and row.unit in planner.UNITS for row in planner.published())
