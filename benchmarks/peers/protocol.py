"""What every runner speaks: one line of JSON in, one line of JSON out, until its standard input ends.

    out, once, when it is ready:  {"version": "..."}
    in:   {"prompts": [[id, ...], ...], "max_tokens": N}
    out:  {"seconds_first": s, "seconds": s, "tokens": [[id, ...], ...]}

All prompts run as one batch, greedily, and the end of a sequence does not end it. `seconds_first` is when every prompt
has its first token. Knows nothing of any peer: each environment's own Python imports it.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

# prompts, max_tokens, what to call once every prompt has its first token -> the tokens of each prompt
Generate = Callable[[list[list[int]], int, Callable[[], None]], list[list[int]]]


def claim_stdout() -> TextIO:
    """Standard output for answers alone: from here on, whatever else the process prints goes to standard error.

    Call before importing anything that may print.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def serve(answers: TextIO, version: str, generate: Generate) -> None:
    """Answers every request on standard input."""
    answer_each(answers, version, lambda request: timed(generate, request["prompts"], request["max_tokens"]))


def answer_each(answers: TextIO, version: str, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The same exchange for requests and answers of any content."""
    print(json.dumps({"version": version}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def timed(generate: Generate, prompts: list[list[int]], max_tokens: int) -> dict[str, object]:
    marks: list[float] = []
    began = time.perf_counter()
    tokens = generate(prompts, max_tokens, lambda: marks.append(time.perf_counter()))
    ended = time.perf_counter()
    return {"seconds_first": marks[0] - began, "seconds": ended - began, "tokens": tokens}
