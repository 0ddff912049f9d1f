"""The command that brings a model of the Hub into a pod, run against a Hub on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import serving
from helm.rendering import example

FILES = ("config.json", "chat_template.jinja", "model-00001.safetensors", "README.md", "pytorch_model.bin")


@pytest.mark.parametrize(
    ("component", "names"),
    [("worker", {"config.json", "chat_template.jinja", "model-00001.safetensors"}), ("gateway", set(FILES[:2]))],
)
def test_a_pod_gets_what_it_needs_and_once(tmp_path: Path, component: str, names: set[str]) -> None:
    hf = Path(sys.executable).with_name("hf")
    if not hf.exists():
        pytest.skip("huggingface_hub's command is not installed")
    repository, weights, token = tmp_path / "repository", tmp_path / "weights", tmp_path / "token"
    repository.mkdir()
    for name in FILES:
        (repository / name).write_text(name)
    token.write_text("hf_secret\n")
    (container,) = example("http-ingress").pod(component).spec["initContainers"]
    command = [str(hf), *container["command"][1:], *container["args"]]
    command[command.index("/weights")] = str(weights)
    environment = {one["name"]: one["value"] for one in container["env"]}
    environment |= {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "home"), "HF_TOKEN_PATH": str(token)}

    with serving("your-team/DeepSeek-V3-small", repository, token="hf_secret") as hub:
        environment |= {"PATH": os.environ["PATH"], "HF_ENDPOINT": hub.endpoint}
        for _ in range(2):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
        assert sorted(hub.fetched) == sorted(names), "what is there is not fetched again"

    assert {one.name for one in weights.iterdir() if one.is_file()} == names
