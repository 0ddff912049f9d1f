"""Every command in the documentation is run as it stands, but for the port, or says why not."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from distributed.served import SOURCE, Outrider
from docs.commands import Command, commands, pages, shown, written_files

from outrider.cluster.cli.app import app

SHOWN = "127.0.0.1:50051"  # where the documentation's server listens
RUN = {page: [one for one in commands(page) if not one.why_not] for page in pages()}


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The address of the server that the tutorial starts."""
    (serve,) = [one for found in RUN.values() for one in found if one.words[:2] == ["outrider", "serve"]]
    run = Outrider(
        *serve.words[1:], "--port", "0", "--http-port", "0", "--ray-address", "local", "--name", "documented"
    )
    yield run.wait_until_ready()
    run.process.terminate()
    assert run.finish() == 0, run.errors


@pytest.fixture
def shell(tmp_path: Path, served: str) -> dict[str, str]:
    """An environment in which `outrider` and `python` are this repository's, and the server is found."""
    for name, words in (("outrider", "-m outrider.cluster.cli"), ("python", "")):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        script.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(SOURCE), "OUTRIDER_ADDRESS": served}


def test_there_are_commands_to_run_and_reasons_for_the_others() -> None:
    told = [one for page in pages() for one in commands(page)]

    assert len([one for one in told if not one.why_not]) > 8
    assert [one.text for one in told if one.why_not and len(one.why_not.split()) < 3] == []


def test_what_is_shown_and_not_run_is_a_command_with_such_options_too() -> None:
    root = typer.main.get_command(app)
    read = 0
    for one in shown():
        name, *arguments = one.words[1:]
        if name == "--version":
            continue
        command = root.commands[name]
        context = command.make_context(name, [], resilient_parsing=True)
        command.make_parser(context).parse_args(arguments)  # raises, and names what it does not know
        read += 1

    assert read > 30


@pytest.mark.parametrize("page", [page for page, found in RUN.items() if found], ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page: Path, tmp_path: Path, served: str, shell: dict[str, str]) -> None:
    for name, text in written_files(page).items():
        (tmp_path / name).write_text(text.replace(SHOWN, served))

    for command in RUN[page]:
        if command.words[:2] == ["outrider", "serve"]:
            continue
        done = _run(command, tmp_path, shell)
        assert done.returncode == 0, f"{command.page}: $ {command.text}\n{done.stdout}{done.stderr}"
        assert done.stdout or "--output" in command.words, f"{command.page}: $ {command.text} said nothing"


def _run(command: Command, folder: Path, shell: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command.text], cwd=folder, env=shell, capture_output=True, text=True, timeout=120, check=False
    )
