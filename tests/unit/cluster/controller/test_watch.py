"""A controller that is silent or dead ends nothing that serves."""

from collections.abc import Callable

from outrider.cluster.controller.reconcile import Phase
from outrider.cluster.controller.replicas.report import ReplicaReport, Report
from outrider.cluster.controller.watch import ControllerDiedError, ControllerSilentError, ControllerWatch
from outrider.workers.types.errors import OutriderError


def a_report(name: str) -> Report:
    replica = ReplicaReport(name=name, phase=Phase.READY, loaded=(1.0,), states=("ready",))
    return Report(replicas=(replica,), ever_ready=True, has_mtp=True)


class Controller:
    """Answers, or raises, what a test lays out."""

    def __init__(self, *answers: Report | OutriderError) -> None:
        self.answers = list(answers)
        self.started = 0

    def ask(self) -> Report:
        answer = self.answers.pop(0)
        if isinstance(answer, OutriderError):
            raise answer
        return answer

    def start_another(self) -> None:
        self.started += 1


def watch(controller: Controller, start: Callable[[], None] | None = None) -> ControllerWatch:
    return ControllerWatch(controller.ask, start or controller.start_another, a_report("before"))


def test_while_it_is_silent_the_last_report_holds_and_then_a_new_one_does() -> None:
    controller = Controller(*[ControllerSilentError("no answer")] * 100, a_report("after"))
    watched = watch(controller)

    for _ in range(100):
        assert watched.report() == a_report("before")
        assert "no answer" in watched.lost

    assert watched.report() == a_report("after")
    assert (watched.lost, controller.started) == ("", 0)


def test_one_that_died_is_replaced() -> None:
    controller = Controller(ControllerDiedError("died"), a_report("after"))
    watched = watch(controller)

    assert watched.report() == a_report("before")
    assert controller.started == 1
    assert watched.report() == a_report("after")


def test_one_that_cannot_be_replaced_now_is_tried_again_and_ends_nothing() -> None:
    def fail() -> None:
        raise OutriderError("Ray is away")

    watched = watch(Controller(*[ControllerDiedError("died")] * 3), fail)

    for _ in range(3):
        assert watched.report() == a_report("before")
        assert "Ray is away" in watched.lost
