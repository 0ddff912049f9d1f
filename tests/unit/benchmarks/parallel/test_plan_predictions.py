import pytest

from benchmarks.parallel import plan_predictions


@pytest.mark.parametrize("row", [row for row in plan_predictions.published() if row.required], ids=lambda row: row.name)
def test_a_prediction_is_within_a_quarter_of_the_published_figure(row: plan_predictions.Published) -> None:
    assert plan_predictions.predict(row) == pytest.approx(row.value, rel=plan_predictions.ALLOWED)


@pytest.mark.parametrize("record", list(plan_predictions.exchanges()), ids=lambda record: f"{record['ranks']} ranks")
def test_an_exchange_takes_about_as_long_as_deepeps_kernels_did(record: dict[str, float]) -> None:
    for trip in ("dispatch", "combine"):
        assert record[f"{trip}_us_predicted"] == pytest.approx(record[f"{trip}_us"], rel=0.15)


def test_every_row_has_a_source_and_says_what_was_assumed() -> None:
    assert all(
        row.source and row.assumed and row.unit in plan_predictions.UNITS for row in plan_predictions.published()
    )
