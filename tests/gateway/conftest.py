from pathlib import Path

import pytest
from small_tokenizer import write_tokenizer


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's directory with a tokenizer in it."""
    return write_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture
def bare_model(tmp_path: Path) -> Path:
    """A checkpoint's directory without a tokenizer."""
    return tmp_path
