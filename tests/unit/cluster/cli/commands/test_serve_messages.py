import pytest

from outrider.cluster.cli.commands.serve import warnings
from outrider.cluster.config import ServeSettings
from outrider.cluster.controller.reconcile import Phase
from outrider.cluster.controller.replicas.report import ReplicaReport, Report


def a_report(*, has_mtp: bool) -> Report:
    replica = ReplicaReport(name="r0", phase=Phase.READY, loaded=(1.0,), states=("ready",))
    return Report(replicas=(replica,), ever_ready=True, has_mtp=has_mtp)


def test_a_checkpoint_without_mtp_weights_is_served_with_a_warning_that_names_it() -> None:
    (line,) = warnings(ServeSettings(model="M"), a_report(has_mtp=False))

    assert line == "M has no MTP weights: serving without MTP drafts"


@pytest.mark.parametrize(("speculation", "has_mtp"), [("off", False), ("auto", True), (4, True)])
def test_what_is_as_it_was_asked_for_needs_no_warning(speculation: str | int, has_mtp: bool) -> None:
    assert warnings(ServeSettings(speculation=speculation), a_report(has_mtp=has_mtp)) == []
