"""outrider behind the runners' protocol: the same engine as LLM.generate, and like its peers without making text.

    .venv/bin/python outrider_runner.py MODEL '{"dtype": "float32", "speculation": "off"}'

The settings are LLM's own.
"""

import json
import queue
import sys
from collections.abc import Callable, Sequence

import protocol

from outrider import LLM, SamplingParams, __version__
from outrider.workers.types.requests.request import SequenceChunk


class Runner(LLM):
    """An LLM that tells when every prompt has its first token."""

    def run(self, prompts: list[list[int]], max_tokens: int, first_token: Callable[[], None]) -> list[list[int]]:
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        requests = self._requests(prompts, params)
        chunks = queue.SimpleQueue[Sequence[SequenceChunk]]()
        tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
        for request in requests:
            self._host.engine.submit(request, chunks.put)
        waiting, running = set(tokens), set(tokens)
        while running:
            for chunk in chunks.get():
                if chunk.error:
                    raise RuntimeError(chunk.error)
                tokens[chunk.request_id] += chunk.token_ids
                if chunk.finish_reason is not None:
                    running.discard(chunk.request_id)
            if waiting and not (waiting := {name for name in waiting if not tokens[name]}):
                first_token()
        return list(tokens.values())


def main() -> None:
    answers = protocol.claim_stdout()
    with Runner(sys.argv[1], enable_prefix_caching=False, **json.loads(sys.argv[2])) as runner:
        protocol.serve(answers, f"outrider {__version__}", runner.run)


if __name__ == "__main__":
    main()
