import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed.controlled import Controlled, own_name
from distributed.speaking import Served
from distributed.stand_ins import SpeakingRank
from small_tokenizer import write_tokenizer

from outrider.cluster.ray_session import NAMESPACE, OBJECT_STORE_BYTES
from outrider.workers.serving.actor import RankFactory

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """One Ray for all tests, which further nodes can join, connected to from this process; its workers can import the
    stand-ins."""
    import ray

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT / 'tests'}")
        environment.setenv("RAY_metrics_report_interval_ms", "200")
        environment.setenv("RAY_health_check_period_ms", "1000")  # a node that went is known soon
        environment.setenv("RAY_worker_niceness", "0")  # ranks wait for other programs no longer than tests do
        with tempfile.TemporaryDirectory(prefix=f"outrider-ray-{os.getpid()}-") as directory:
            ray.init(
                address="local",
                namespace=NAMESPACE,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level="ERROR",
                _temp_dir=directory,
            )
            yield ray.get_runtime_context().gcs_address
            ray.shutdown()


@pytest.fixture
def name(ray_address: str) -> Iterator[str]:
    """A cluster's name that is this test's own; what the test leaves under it is removed."""
    with own_name() as name:
        yield name


@pytest.fixture(scope="module")
def served(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One controller and gateway for a module's tests, each of which begins with a single replica that is ready."""
    model_path = str(write_tokenizer(tmp_path_factory.mktemp("model")))
    with own_name() as name:
        cluster = Controlled(name, SpeakingRank, model_path=model_path)
        served = Served(cluster)
        yield served
        served.close()
        cluster.close()


@pytest.fixture
def controlled(name: str) -> Iterator[Callable[..., Controlled]]:
    """Starts a controller of replicas of two ranks of the given kind, and ends it."""
    started: list[Controlled] = []

    def start(factory: RankFactory, **changes: Any) -> Controlled:
        started.append(Controlled(name, factory, **changes))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def model_path(tmp_path: Path) -> str:
    """A tokenizer, for ranks that speak."""
    return str(write_tokenizer(tmp_path))
