"""What a rank settles before it loads: lengths that fit."""

import logging

import pytest

from outrider.workers.config import EngineConfig
from outrider.workers.loading.resolved_config import fitted_length
from outrider.workers.types.errors import OutriderError


def test_a_length_that_fits_is_kept() -> None:
    assert fitted_length(EngineConfig(block_size=16), 160, blocks=10) == 160


def test_the_models_own_length_is_cut_to_what_the_cache_holds_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert fitted_length(EngineConfig(block_size=16), 4096, blocks=10) == 160

    assert "max_model_len is 160 and not the model's 4096" in caplog.text
    assert "kv_cache_memory_bytes" in caplog.text


def test_a_length_that_was_asked_for_and_does_not_fit_is_an_error() -> None:
    with pytest.raises(OutriderError, match="max_model_len=200 does not fit, the cache holds 160 tokens"):
        fitted_length(EngineConfig(block_size=16, max_model_len=200), 200, blocks=10)
