"""Objects rendered by Helm's own engine, once for each set of values."""

import pytest
from helm.rendering import EXAMPLES, Rendered, example


@pytest.fixture(scope="session", params=sorted(EXAMPLES))
def rendered(request: pytest.FixtureRequest) -> Rendered:
    """Each example in turn, the defaults among them."""
    return example(request.param)
