"""The process that test-compiles untrusted grammars, so that a bad one can crash only this process.

Run as `python -m outrider.workers.text.grammar_process TOKENIZER_JSON SECONDS`. It answers each line of standard input,
the JSON of a StructuredOutputsParams, with a line of JSON: null, or the problem. SIGPROF ends it if a grammar takes
more than SECONDS of CPU time; the grammar library aborts it if a grammar needs too much memory or stack.
"""

import json
import os
import resource
import signal
import sys
import threading
from pathlib import Path

from llguidance import LLMatcher, LLTokenizer

from outrider.workers.sampling.grammar_source import LIMITS, grammar_of
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams

MEMORY_BYTES = 64 * 2**20  # in addition to the tokenizer's memory
STACK_BYTES = 2**20  # less than the stack of the threads that later compile and apply the grammar
_NICE = 10  # rounds and other requests have priority


def problem_of(tokenizer: LLTokenizer, params: StructuredOutputsParams) -> str | None:
    """The grammar's problem, found by compiling it and computing the first token's mask; None if it has none."""
    try:
        grammar = grammar_of(params)
        found, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=LIMITS)
        if found:
            return messages[0]
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
        matcher.compute_bitmask()
    except RecursionError:
        return "it is nested too deeply"
    except ValueError as error:
        return str(error)
    return matcher.get_error() or None


def _serve(tokenizer: LLTokenizer, cpu_s: float) -> None:
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)  # SIGPROF's default is to end the process
        problem = problem_of(tokenizer, StructuredOutputsParams(**json.loads(line)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _answer(problem)
    os._exit(0)


def _answer(problem: str | None) -> None:
    sys.stdout.write(json.dumps(problem) + "\n")
    sys.stdout.flush()


def main() -> None:
    os.nice(_NICE)
    tokenizer = LLTokenizer(Path(sys.argv[1]).read_text(encoding="utf-8"))
    _answer(problem_of(tokenizer, StructuredOutputsParams(json_object=True)))  # allocates what all checks share
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + STACK_BYTES + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=_serve, args=(tokenizer, float(sys.argv[2])))
    thread.start()
    thread.join()
    os._exit(1)  # the grammar library failed in an unexpected way


if __name__ == "__main__":
    main()
