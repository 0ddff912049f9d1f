"""A Deployment that KEDA scales sets the number of replicas."""

import asyncio
import logging
from collections.abc import Sequence

import pytest
from fake_kubernetes import FakeKubernetes
from gateway.harness import eventually

from outrider.cluster.api.errors import SettingsError
from outrider.cluster.config import load_settings
from outrider.cluster.controller.scaling.kubernetes import DeploymentScale
from outrider.cluster.controller.scaling.kubernetes_scaling import follow
from outrider.workers.types.errors import OutriderError

PATH = "/apis/apps/v1/namespaces/ns/deployments/r1-scale/scale"


class Controller:
    def __init__(self) -> None:
        self.desired, self.scaled = 1, list[int]()

    async def scale(self, replicas: int) -> None:
        self.desired = replicas
        self.scaled.append(replicas)


class Wanted:
    """Returns the numbers in turn, and keeps returning the last. Raises errors among them."""

    def __init__(self, answers: Sequence[int | str]) -> None:
        self.left = list(answers)

    def read(self) -> int:
        answer = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        if isinstance(answer, str):
            raise OutriderError(answer)
        return answer


@pytest.mark.parametrize(
    ("answers", "scaled"), [([1, 1, 3, 3, 2], [3, 2]), ([1, "gone", "gone", 2], [2]), (["gone"] * 3 + [1, 0], [0])]
)
def test_the_controller_follows_each_change_and_an_error_changes_nothing(
    answers: list[int | str], scaled: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> Controller:
        controller, wanted = Controller(), Wanted(answers)
        task = asyncio.create_task(follow(wanted, controller, every_s=0.001))
        await eventually(lambda: len(wanted.left) == 1 and controller.desired == answers[-1])
        task.cancel()
        return controller

    with caplog.at_level(logging.WARNING, logger="outrider"):
        assert asyncio.run(scenario()).scaled == scaled

    assert len(caplog.records) == (1 if "gone" in answers else 0), "a problem is said once"


def test_a_number_that_a_user_sets_stays_until_the_wanted_one_changes() -> None:
    async def scenario() -> None:
        controller, wanted = Controller(), Wanted([3])
        task = asyncio.create_task(follow(wanted, controller, every_s=0.001))
        await eventually(lambda: controller.desired == 3)
        await controller.scale(4)
        await asyncio.sleep(0.05)
        assert controller.scaled == [3, 4]
        wanted.left = [2]
        await eventually(lambda: controller.scaled == [3, 4, 2])
        task.cancel()

    asyncio.run(scenario())


def test_without_a_deployment_nothing_is_followed() -> None:
    controller = Controller()

    asyncio.run(asyncio.wait_for(follow(None, controller), timeout=10))

    assert controller.scaled == []


def test_the_deployments_number_is_read_by_name_and_nothing_else_is_asked() -> None:
    fake = FakeKubernetes(PATH, {"kind": "Scale", "spec": {"replicas": 4}, "status": {"replicas": 1}})
    try:
        assert DeploymentScale(fake.deployments, "ns/r1-scale").read() == 4
        assert [(method, path) for method, path, _ in fake.asked] == [("GET", PATH)]
        with pytest.raises(OutriderError, match=r"Deployment ns/other: Kubernetes answered 403 Forbidden"):
            DeploymentScale(fake.deployments, "ns/other").read()
    finally:
        fake.close()


def test_two_that_would_set_the_number_of_replicas_are_refused() -> None:
    both = ["autoscale_max_replicas=2", "kubernetes_scale_deployment=ns/r1"]
    with pytest.raises(SettingsError, match="kubernetes_scale_deployment must not both be set"):
        load_settings(None, both)
