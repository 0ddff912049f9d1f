"""Checkpoints by hf://OWNER/NAME, from a Hub on this machine. A process reads the Hub's address once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import COMMIT, serving

SOURCE = Path(__file__).parents[3] / "src"
NAME = "hf://deepseek-ai/small"
SMALL, WHOLE = {"config.json", "tokenizer.json"}, {"config.json", "tokenizer.json", "model.safetensors"}
RESOLVE = "from outrider.workers.config import resolve_model; print(resolve_model({!r}, weights={}))"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in (*WHOLE, "README.md", "pytorch_model.bin"):
        (folder / name).write_text(f"{{}} {name}")
    return folder


def said(code: str, cache: Path, **environment: str) -> str:
    """What a process prints; what it fails with, if it does."""
    pytest.importorskip("huggingface_hub")
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    env = {name: value for name, value in env.items() if name not in ("HF_TOKEN", "HF_HUB_OFFLINE")} | environment
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("revision", "weights", "names"), [("", True, WHOLE), ("@main", False, SMALL), (f"@{COMMIT}", True, WHOLE)]
)
def test_a_checkpoint_is_fetched_once_with_or_without_its_weights(
    checkpoint: Path, tmp_path: Path, revision: str, weights: bool, names: set[str]
) -> None:
    with serving("deepseek-ai/small", checkpoint) as hub:
        code = RESOLVE.format(NAME + revision, weights)
        folder = Path(said(code, tmp_path, HF_ENDPOINT=hub.endpoint))

        assert folder.name == COMMIT
        assert {one.name for one in folder.iterdir()} == names
        assert said(code, tmp_path, HF_ENDPOINT=hub.endpoint) == str(folder)
        assert sorted(hub.fetched) == sorted(names)


def test_what_was_fetched_is_used_while_the_hub_cannot_be_reached(checkpoint: Path, tmp_path: Path) -> None:
    with serving("deepseek-ai/small", checkpoint) as hub:
        folder = said(RESOLVE.format(NAME, True), tmp_path, HF_ENDPOINT=hub.endpoint)
        address = hub.endpoint

    assert said(RESOLVE.format(NAME, True), tmp_path, HF_ENDPOINT=address) == folder


def test_a_private_repository_needs_the_token(checkpoint: Path, tmp_path: Path) -> None:
    code = RESOLVE.format(NAME, False)
    with serving("deepseek-ai/small", checkpoint, token="hf_secret") as hub:
        assert "a private one that HF_TOKEN does not open" in said(code, tmp_path, HF_ENDPOINT=hub.endpoint)
        assert said(code, tmp_path, HF_ENDPOINT=hub.endpoint, HF_TOKEN="hf_secret").endswith(COMMIT)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("hf://small", "model must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION, got 'hf://small'"),
        ("hf://a/b@", "model must be hf://OWNER/NAME"),
        ("hf://unknown/model", "hf://unknown/model: no such repository"),
        (f"{NAME}@v9", f"{NAME}@v9: the repository has no such revision"),
    ],
)
def test_a_name_that_is_none_is_refused(checkpoint: Path, tmp_path: Path, model: str, message: str) -> None:
    with serving("deepseek-ai/small", checkpoint) as hub:
        assert message in said(RESOLVE.format(model, True), tmp_path, HF_ENDPOINT=hub.endpoint)


def test_a_repository_without_a_configuration_is_no_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "config.json").unlink()
    with serving("deepseek-ai/small", checkpoint) as hub:
        assert "has no config.json" in said(RESOLVE.format(NAME, True), tmp_path, HF_ENDPOINT=hub.endpoint)


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    code = f"import sys; sys.modules['huggingface_hub'] = None; {RESOLVE.format(NAME, True)}"

    assert "needs huggingface_hub, which is not installed: pip install 'outrider[huggingface]'" in said(code, tmp_path)


def test_every_rank_and_gateway_gets_the_commit_that_serve_found(tmp_path: Path) -> None:
    code = (
        "from outrider.cluster.config import ServeSettings; from outrider.cluster.serve import make_cluster_spec;"
        "spec = make_cluster_spec(ServeSettings(model='hf://us/scout'));"
        "print(spec.model_name, spec.model_path, spec.engine.model)"
    )
    with serving("us/scout", SOURCE.parent / "models" / "scout") as hub:
        pinned = f"hf://us/scout@{COMMIT}"
        assert said(code, tmp_path, HF_ENDPOINT=hub.endpoint) == f"scout {pinned} {pinned}"
        assert "model.safetensors" not in hub.fetched
