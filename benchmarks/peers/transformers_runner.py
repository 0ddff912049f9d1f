"""transformers' generate behind the runners' protocol.

    .envs/transformers/bin/python transformers_runner.py MODEL '{"dtype": "float32"}' THREADS

The settings go to from_pretrained.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import protocol


class Runner:
    def __init__(self, model: str, settings: dict[str, Any]) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(model, **settings).eval()

    def generate(self, prompts: list[list[int]], max_tokens: int, first_token: Callable[[], None]) -> list[list[int]]:
        """The prompts are of one length: a batch of others would need padding, which is not what is measured here."""
        import torch
        from transformers import StoppingCriteria

        class Watch(StoppingCriteria):
            """Asked after each token whether to stop: never, but the first time tells when the first token came."""

            asked = False

            def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
                if not self.asked:
                    first_token()
                self.asked = True
                return torch.zeros(len(input_ids), dtype=torch.bool)

        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=None,
                stopping_criteria=[Watch()],
            )
        tokens: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return tokens


def main() -> None:
    answers = protocol.claim_stdout()
    import torch
    import transformers

    torch.set_num_threads(int(sys.argv[3]))
    runner = Runner(sys.argv[1], json.loads(sys.argv[2]))
    version = f"transformers {transformers.__version__}, torch {torch.__version__}"
    protocol.serve(answers, version, runner.generate)


if __name__ == "__main__":
    main()
