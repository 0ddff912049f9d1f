"""xgrammar's own grammar of DeepSeek's tool calls agrees with ours, over random schemas."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from clients.environments import SCRIPTS, program
from gateway.http.served import Served
from gateway.http.test_tools import asked, request

from outrider.workers.config import resolve_model
from outrider.workers.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]
END = "<｜end▁of▁sentence｜>"


def accepted(python: str, cases: list[list[Any]]) -> list[bool]:
    command = [python, str(SCRIPTS / "xgrammar_accepts.py")]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return [bool(one) for one in json.loads(done.stdout)]


def test_calls_are_what_xgrammar_accepts_and_damaged_ones_are_not(scout: Served) -> None:
    python, tokenizer = program("xgrammar"), Tokenizer.load(resolve_model("scout"))
    assert tokenizer is not None

    def case(number: int) -> list[Any] | None:
        body = {**request(number), "speculation": 4}
        choice = asked(scout, body)
        text = tokenizer.decode(choice["token_ids"], skip_special_tokens=False).removesuffix(END)
        # xgrammar lets no escapes into a string that has a maxLength, which JSON does.
        whole = choice["finish_reason"] == "tool_calls" and "\\" not in text
        return [body["tools"], body["tool_choice"], body["parallel_tool_calls"], text] if whole else None

    with ThreadPoolExecutor(8) as threads:
        cases = [one for one in threads.map(case, range(100)) if one is not None]

    assert len(cases) > 50
    assert accepted(python, cases) == [True] * len(cases)
    damaged = [[*asked_for, text.replace("function<", "functional<", 1)] for *asked_for, text in cases]
    assert accepted(python, damaged) == [False] * len(cases)
