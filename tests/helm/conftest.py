"""Objects rendered by Helm's own engine, once for each set of values."""

import logging
from collections.abc import Iterator

import pytest
from helm.rendering import EXAMPLES, Rendered, example


@pytest.fixture(scope="session", params=sorted(EXAMPLES))
def rendered(request: pytest.FixtureRequest) -> Rendered:
    """Each example in turn, the defaults among them."""
    return example(request.param)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command that runs in this process takes the logger for itself."""
    logger = logging.getLogger("outrider")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)
