"""Sends each line of a file as a request and writes the answers as they finish. An interrupted run can be continued.

An input line is a JSON object: one of `prompt`, `token_ids` and `messages`, any fields of SamplingParams, and an
optional `id`. Output lines are in the order of completion: `line` (from 1), `id`, `input` (a digest of the input line),
and the answer's fields or an `error` {kind, message}. This module does no terminal output.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outrider.cluster.api.errors import GenerationFailedError, InvalidRequestError, SettingsError, UnavailableError
from outrider.cluster.client.async_client import AsyncClient
from outrider.workers.types.errors import OutriderError, OverloadedError

Record = dict[str, Any]  # one line of output
ATTEMPTS = 6  # per request, after a lost replica or gateway
_LONGEST_PAUSE_S = 16.0
_DIGEST_LENGTH = 16
_PROMPTS = {"prompt": str, "token_ids": list, "messages": list}
_NOT_OF_A_LINE = {
    "params",
    "timeout_s",
    "request_id",
    "speculation_detail",
    "reasoning_end_id",
    "reasoning_begin_id",
    "tool_format",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of input, before parsing."""

    number: int  # from 1
    text: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode(errors="surrogateescape")).hexdigest()[:_DIGEST_LENGTH]


def read_lines(path: Path) -> Iterator[Line]:
    """The lines that are not blank, read one at a time. Raises SettingsError if the file does not exist."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield Line(number, text.strip())
    except OSError as error:
        raise SettingsError(f"--input {path}: {error.strerror}") from error


def parse(line: Line) -> tuple[Any, dict[str, Any]]:
    """The line's `id`, and the arguments for the client. Raises InvalidRequestError if the line is invalid."""
    try:
        arguments = json.loads(line.text)
    except ValueError as error:
        raise InvalidRequestError(f"not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise InvalidRequestError("not a JSON object")
    identity = arguments.pop("id", None)
    for name in arguments.keys() & _NOT_OF_A_LINE:
        raise InvalidRequestError(f"unknown parameter {name!r}")
    for name, kind in _PROMPTS.items():
        if not isinstance(arguments.get(name), kind | None):
            raise InvalidRequestError(f"{name} must be a {kind.__name__}, got {arguments[name]!r}")
    if not all(isinstance(message, dict) for message in arguments.get("messages") or ()):
        raise InvalidRequestError(f"messages must be objects, got {arguments['messages']!r}")
    if arguments.get("logit_bias") is not None:
        arguments["logit_bias"] = _biases(arguments["logit_bias"])
    return identity, arguments


def _biases(given: object) -> dict[int, Any]:
    """Converts token ids to integers, since JSON keys are strings."""
    if not isinstance(given, dict) or not all(key.isascii() and key.isdigit() for key in given):
        raise InvalidRequestError(f"logit_bias must be an object of biases by token id, got {given!r}")
    return {int(key): bias for key, bias in given.items()}


class Answers:
    """The output file. Records are written atomically, and are in the file when `add` returns."""

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        """Reads the answers of an earlier run. Drops errors and an incomplete last line, so that they are retried."""
        self._path = path
        self._digests: dict[int, str] = {}  # of answered lines, by number
        kept = [] if overwrite or not path.exists() else list(_answered(path))
        for record in kept:
            self._digests[record["line"]] = record["input"]
        self._start(kept)

    def _start(self, kept: Iterable[Record]) -> None:
        beside = self._path.with_name(f".{self._path.name}.partial")
        try:
            with beside.open("w", encoding="utf-8") as file:
                file.writelines(f"{json.dumps(record)}\n" for record in kept)
            beside.replace(self._path)
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise SettingsError(f"--output {self._path}: {error.strerror}") from error

    def __len__(self) -> int:
        return len(self._digests)

    def has(self, line: Line) -> bool:
        """Whether the line is answered. Raises SettingsError if the answer belongs to another input."""
        digest = self._digests.get(line.number)
        if digest not in (None, line.digest):
            raise SettingsError(
                f"--output {self._path} has an answer to a different line {line.number} than --input: "
                "choose another file, or use --overwrite"
            )
        return digest is not None

    def add(self, record: Record) -> None:
        self._file.write(f"{json.dumps(record)}\n")

    def close(self) -> None:
        self._file.close()


def _answered(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith("\n"):
                return  # an interrupted write
            record = None
            with contextlib.suppress(ValueError):
                record = json.loads(text)
            if not isinstance(record, dict) or not {"line", "input"} <= record.keys():
                raise SettingsError(
                    f"--output {path} line {number} is not an answer of an earlier run: "
                    "choose another file, or use --overwrite"
                )
            if "error" not in record:
                yield record


async def answer_all(
    client: AsyncClient,
    lines: Iterable[Line],
    defaults: Mapping[str, Any],
    *,
    concurrency: int,
    done: Callable[[Record], None],
) -> None:
    """Sends every line, `concurrency` at a time, and calls `done` with each record. Line fields override `defaults`.

    The error of a single line becomes its record. Raises UnavailableError if the gateway was unreachable in all
    ATTEMPTS, since the other lines would fail too; earlier answers are kept.
    """
    waiting = iter(lines)

    async def work() -> None:
        for line in waiting:
            done(await _answer(client, line, defaults))

    workers = [asyncio.create_task(work()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _answer(client: AsyncClient, line: Line, defaults: Mapping[str, Any]) -> Record:
    record: Record = {"line": line.number, "id": None, "input": line.digest}
    try:
        record["id"], arguments = parse(line)
        answer = await _ask(client, {**defaults, **arguments})
    except UnavailableError:
        raise
    except (OutriderError, UnicodeEncodeError) as error:
        return {**record, "error": {"kind": type(error).__name__, "message": str(error)}}
    return {**record, **dataclasses.asdict(answer)}


async def _ask(client: AsyncClient, arguments: Mapping[str, Any]) -> Any:
    """Retries while the cluster is overloaded, and after a lost replica or gateway."""
    failures = 0
    while True:
        try:
            return await client.generate(**arguments)
        except OverloadedError as error:
            pause_s = error.retry_after_s
        except (UnavailableError, GenerationFailedError):
            failures += 1
            if failures == ATTEMPTS:
                raise
            pause_s = min(2.0 ** (failures - 1), _LONGEST_PAUSE_S)
        await asyncio.sleep(pause_s)
