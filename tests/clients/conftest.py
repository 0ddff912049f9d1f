from collections.abc import Iterator

import pytest
from gateway.http.served import Served, serve


@pytest.fixture(scope="session")
def scout() -> Iterator[Served]:
    yield from serve()
