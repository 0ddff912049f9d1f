"""A small random model and its own text, harvested once."""

import pytest
from harvested import Harvested, harvest_small_model


@pytest.fixture(scope="session")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> Harvested:
    return harvest_small_model(tmp_path_factory.mktemp("distill"))
