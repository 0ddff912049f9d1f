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

from outrider.kernels.cpu.build import built, instruction_set
from outrider.kernels.cpu.compiler import SOURCES, BuildError
from outrider.kernels.cpu.library import load

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


def test_a_cache_that_is_there_and_cannot_be_written_is_an_error_that_says_so(
    cache: Path, compiler: Callable[[str], Path]
) -> None:
    """Root may write anywhere, so here what cannot be written is a folder's name."""
    compiler('echo library > "$out"')
    path = built(ISA)
    path.unlink()
    path.with_suffix(".lock").unlink()
    path.with_suffix(".lock").mkdir()

    with pytest.raises(BuildError, match=rf"cannot write {cache}.*XDG_CACHE_HOME"):
        built(ISA)


def test_a_user_without_a_home_is_told_to_name_a_cache(
    compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs under any user id."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    compiler('echo library > "$out"')
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)

    with pytest.raises(BuildError, match="XDG_CACHE_HOME"):
        built(ISA)


def test_an_instruction_set_that_is_unknown_is_refused_with_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_CPU_ISA", "sse9")

    with pytest.raises(BuildError, match=r"OUTRIDER_CPU_ISA=sse9: this processor supports plain"):
        instruction_set.__wrapped__()


def test_a_lesser_instruction_set_may_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_CPU_ISA", "plain")

    assert instruction_set.__wrapped__() == "plain"


def test_a_library_that_cannot_be_loaded_is_an_error_that_names_it(
    cache: Path, compiler: Callable[[str], Path]
) -> None:
    compiler('echo library > "$out"')

    with pytest.raises(BuildError, match=f"cannot load {cache}"):
        load.__wrapped__()


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
