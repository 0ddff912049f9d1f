"""The documentation's site: built strictly, and its reference made from the code."""

import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from outrider.cluster.config import ServeSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(target), strict=True))
    return target


def text(site: Path, page: str) -> str:
    return re.sub(r"<[^>]+>", "", (site / page / "index.html").read_text())


def test_every_page_is_there_and_loads_nothing_from_elsewhere(site: Path) -> None:
    built = list(site.rglob("index.html"))

    assert len(built) > 12
    for page in built:
        loaded = re.findall(r'<(?:script|img|link)[^>]*(?:src|href)="(https?://[^"]+)"', page.read_text())
        assert loaded == [], page


def test_the_reference_names_every_setting_command_and_metric(site: Path) -> None:
    settings, commands, metrics = (text(site, f"reference/{page}") for page in ("configuration", "cli", "metrics"))

    assert [name for name in ServeSettings.model_fields if name not in settings] == []
    assert [name for name in ("serve", "generate", "status", "demo") if f"outrider {name}" not in commands] == []
    for name in ("outrider_gateway_requests_total", "ray_outrider_spec_decode_num_accepted_tokens_per_pos_total"):
        assert name in metrics
    assert "rpc Generate(GenerateRequest)" in text(site, "reference/grpc")
