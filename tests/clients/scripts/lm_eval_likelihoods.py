"""Log-likelihoods by lm_eval's local-completions from a served model, and by transformers from the same checkpoint.

`python lm_eval_likelihoods.py URL MODEL CHECKPOINT` prints both lists as JSON, and two generated texts.
"""

import json
import sys

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
from transformers import AutoModelForCausalLM, AutoTokenizer

PAIRS = (
    ("def add(a, b):\n    return", " a + b"),
    ("def add(a, b):\n    return", " b"),
    ("import numpy as", " np"),
    ("The kernel schedules", " every process, and then it runs"),
    ("class Stack:\n    def __init__(self):\n        self", ".items = []"),
)


def by_transformers(checkpoint: str, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    """The sum of the continuation's log-probabilities, and whether greedy decoding would say it."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    found = []
    for context, continuation in pairs:
        with torch.no_grad():
            logits = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]
        wanted = torch.tensor(continuation)
        scores = logits.log_softmax(-1).gather(1, wanted[:, None]).sum()
        found.append((float(scores), bool((logits.argmax(-1) == wanted).all())))
    return found


def main() -> None:
    url, name, checkpoint = sys.argv[1:]
    served = LocalCompletionsAPI(
        model=name, base_url=f"{url}/v1/completions", tokenizer=checkpoint, tokenizer_backend="huggingface",
        num_concurrent=1, max_length=2048, seed=1,
    )  # fmt: skip
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(PAIRS)]
    likelihoods = served.loglikelihood(requests)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    encoded = [served._encode_pair(*pair) for pair in PAIRS]
    asked = Instance("generate_until", {}, ("def add(a, b):", {"max_gen_toks": 12, "until": ["\n\n"]}), 0)
    (text,) = served.generate_until([asked])
    print(json.dumps({
        "served": likelihoods,
        "transformers": by_transformers(checkpoint, encoded),
        "tokens": [len(continuation) for _, continuation in encoded],
        "text": text,
        "vocabulary": len(tokenizer),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
