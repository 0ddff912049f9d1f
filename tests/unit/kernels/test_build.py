"""Building the CPU kernels: once, by whoever comes first; and what is said where it cannot be done.

Compilers are stand-ins, but for the library that they copy: it is the one that this machine built.
"""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from outrider.kernels.cpu.build import SOURCES, BuildError, built, instruction_set

SOURCE = Path(__file__).parents[3] / "src"
ISA = instruction_set()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, in force."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "outrider"


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes a script the compiler: it says its version, notes each of its runs in `runs`, then does `work`.

    In `work`, $out is the file to write.
    """

    def make(work: str, name: str = "compiler") -> Path:
        script = tmp_path / name
        script.write_text(
            "#!/bin/sh\n"
            'if [ "$1" = --version ]; then echo stand-in 1.0; exit 0; fi\n'
            f"echo run >> {tmp_path}/runs\n"
            'for argument; do [ "$previous" = -o ] && out="$argument"; previous="$argument"; done\n'
            f"{work}\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CXX", str(script))
        return script

    return make


def runs(tmp_path: Path) -> int:
    file = tmp_path / "runs"
    return len(file.read_text().splitlines()) if file.exists() else 0


def left_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.suffix != ".lock")


def test_a_library_is_built_once_and_found_from_then_on(
    tmp_path: Path, cache: Path, compiler: Callable[[str], Path]
) -> None:
    compiler('echo library > "$out"')

    first, again = built(ISA), built(ISA)

    assert first == again
    assert first.parent == cache
    assert first.read_text() == "library\n"
    assert runs(tmp_path) == 1
    assert left_in(cache) == [first.name]


def test_another_compiler_or_instruction_set_has_a_library_of_its_own(
    tmp_path: Path, cache: Path, compiler: Callable[..., Path]
) -> None:
    script = compiler('echo library > "$out"')
    paths = {built("plain"), built("avx2")}
    script.write_text(script.read_text().replace("1.0", "2.0"))
    paths.add(built("plain"))

    assert len(paths) == runs(tmp_path) == len(left_in(cache)) == 3


def test_the_compiler_is_given_the_source_and_no_licence_to_reorder_sums(
    tmp_path: Path, cache: Path, compiler: Callable[[str], Path]
) -> None:
    compiler(f'echo "$@" > {tmp_path}/arguments; echo library > "$out"')

    built(ISA)

    arguments = (tmp_path / "arguments").read_text().split()
    assert str(SOURCES / "library.cpp") in arguments
    assert "-ffp-contract=off" in arguments
    assert not {"-ffast-math", "-Ofast", "-funsafe-math-optimizations", "-march=native"}.intersection(arguments)


@pytest.mark.parametrize("name", ["/nonexistent", "no-such-compiler"])
def test_a_compiler_that_is_not_there_is_named_with_the_cure(
    name: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", name)

    with pytest.raises(BuildError, match=rf"no C\+\+ compiler .*CXX={name}.*: install g\+\+"):
        built(ISA)


def test_an_empty_path_is_no_compiler(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(BuildError, match=r"no C\+\+ compiler here \(looked for c\+\+, g\+\+, clang\+\+\): install"):
        built(ISA)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ("echo 'In file x' >&2; echo 'library.cpp:1:2: error: no such thing' >&2; exit 1", "error: no such thing"),
        ("echo 'cannot execute cc1plus' >&2; exit 1", "cannot execute cc1plus"),
        ("kill -9 $$", "could not build"),
    ],
    ids=["an error", "another complaint", "killed"],
)
def test_a_compiler_that_fails_is_an_error_with_its_own_words_and_leaves_nothing(
    work: str, said: str, cache: Path, compiler: Callable[[str], Path]
) -> None:
    script = compiler(work)

    with pytest.raises(BuildError, match=rf"{script} could not build the CPU kernels") as caught:
        built(ISA)

    assert said in str(caught.value)
    assert left_in(cache) == []


def test_a_compiler_that_fails_once_is_tried_again(
    tmp_path: Path, cache: Path, compiler: Callable[[str], Path]
) -> None:
    compiler(f'[ -e {tmp_path}/ready ] && echo library > "$out"')
    with pytest.raises(BuildError):
        built(ISA)

    (tmp_path / "ready").touch()

    assert built(ISA).exists()
    assert runs(tmp_path) == 2


def test_a_file_that_is_no_program_is_no_compiler(tmp_path: Path, cache: Path, compiler: Callable[[str], Path]) -> None:
    """Of another machine's architecture, say: it may be run, and cannot."""
    compiler("").write_bytes(b"\x7fELF of another kind")

    with pytest.raises(BuildError, match="compiler"):
        built(ISA)


def test_a_compiler_that_succeeds_and_writes_nothing_is_an_error(cache: Path, compiler: Callable[[str], Path]) -> None:
    compiler("exit 0")

    with pytest.raises(BuildError, match="could not build"):
        built(ISA)


def test_a_cache_that_cannot_be_made_is_an_error_that_says_where_to_put_it(
    tmp_path: Path, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler('echo library > "$out"')
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    with pytest.raises(BuildError, match=r"cannot write .*file/outrider.*XDG_CACHE_HOME"):
        built(ISA)


def run_python(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """In a process of its own, with nothing cached."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_cache_that_is_there_and_cannot_be_written_is_an_error_that_says_so(
    tmp_path: Path, cache: Path, compiler: Callable[[str], Path]
) -> None:
    """Another user's, say."""
    compiler('echo library > "$out"').chmod(0o755)
    cache.mkdir(parents=True)
    cache.chmod(0o555)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    code = (
        "import os\n"
        "from outrider.kernels.cpu.build import BuildError, built\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"  # root may write anywhere
        "try: built('plain')\n"
        "except BuildError as error: print(error)\n"
    )

    done = run_python(code)

    assert done.returncode == 0, done.stderr
    assert f"cannot write {cache}" in done.stdout
    assert "XDG_CACHE_HOME" in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user that the system does not know")
def test_a_user_without_a_home_is_told_to_name_a_cache() -> None:
    """As in a container that runs under any user id."""
    code = (
        "import os\n"
        "from outrider.kernels.cpu.build import BuildError, built\n"
        "os.environ.pop('HOME', None), os.environ.pop('XDG_CACHE_HOME', None)\n"
        "os.setuid(54321)\n"
        "try: built('plain')\n"
        "except BuildError as error: print(error)\n"
    )

    done = run_python(code)

    assert done.returncode == 0, done.stderr
    assert "XDG_CACHE_HOME" in done.stdout


def test_two_processes_that_start_together_build_once(
    tmp_path: Path, cache: Path, compiler: Callable[[str], Path]
) -> None:
    compiler('sleep 1; echo library > "$out"')
    code = "from outrider.kernels.cpu.build import built; print(built('plain').read_text())"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}

    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]

    assert [process.communicate(timeout=60)[0].strip() for process in processes] == ["library", "library"]
    assert runs(tmp_path) == 1
    assert len(left_in(cache)) == 1


ASK = """
import logging, sys
import torch
from outrider.workers.config import EngineConfig
from outrider.workers.errors import OutriderError
from outrider.workers.model_loading import kernels_in_force
logging.basicConfig(format="%(levelname)s %(message)s")
for kernels in ("auto", "compiled", "torch"):
    for quantization in (None, "int8"):
        config = EngineConfig(kernels=kernels, quantization=quantization)
        try: print(kernels, quantization, kernels_in_force(config, torch.device("cpu"), torch.float32))
        except OutriderError as error: print(kernels, quantization, "refused:", error)
"""


def assert_torchs_path_with_one_warning(done: "subprocess.CompletedProcess[str]", why: str) -> None:
    """And where that will not do, an error of one line."""
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(warnings) == 1, done.stderr
    assert warnings[0].startswith("WARNING")
    assert why in warnings[0]
    auto, quantized, compiled, _, torchs, _ = done.stdout.splitlines()
    assert auto == "auto None torch"
    assert torchs == "torch None torch"
    assert quantized.startswith('auto int8 refused: quantization="int8" needs the compiled kernels')
    assert compiled.startswith('compiled None refused: kernels="compiled" cannot be had')
    assert why in quantized
    assert why in compiled


def test_without_a_compiler_auto_takes_torchs_path_with_one_warning_that_names_the_cure(cache: Path) -> None:
    done = run_python(ASK, CXX="/nonexistent")

    assert_torchs_path_with_one_warning(done, "no C++ compiler here (looked for CXX=/nonexistent): install g++")


def test_an_instruction_set_that_is_unknown_is_refused_with_those_there_are(cache: Path) -> None:
    done = run_python(ASK, OUTRIDER_CPU_ISA="sse9")

    assert_torchs_path_with_one_warning(done, "OUTRIDER_CPU_ISA=sse9: this processor runs plain")


def test_a_library_that_cannot_be_loaded_is_an_error_that_names_it(
    cache: Path, compiler: Callable[[str], Path]
) -> None:
    compiler('echo library > "$out"')

    done = run_python(ASK)

    assert_torchs_path_with_one_warning(done, f"cannot load {cache}")


def test_an_llm_without_a_compiler_serves_and_one_that_must_have_them_says_why(cache: Path) -> None:
    code = (
        "import sys\n"
        "from outrider import LLM, OutriderError, SamplingParams\n"
        "params = SamplingParams(temperature=0, max_tokens=3)\n"
        "with LLM('scout', kv_cache_memory_bytes=64 << 20) as llm:\n"
        "    print(len(llm.generate('import os', params)[0].outputs[0].token_ids))\n"
        "try: LLM('scout', kernels='compiled', kv_cache_memory_bytes=64 << 20)\n"
        "except OutriderError as error: print(error)\n"
    )

    done = run_python(code, CXX="/nonexistent")

    assert done.returncode == 0, done.stderr
    count, refusal = done.stdout.splitlines()
    assert count == "3"
    assert refusal.startswith('kernels="compiled" cannot be had: no C++ compiler here')
    assert done.stderr.count("no compiled kernels") == 1
    assert "install g++" in done.stderr
