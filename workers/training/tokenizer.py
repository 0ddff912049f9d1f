"""Builds scout's tokenizer: `python -m outrider.workers.training.tokenizer --corpus DIR --out DIR`.

Byte-level BPE with DeepSeek-V3's pre-tokenizer and its spellings of the special tokens, in the files that
transformers' AutoTokenizer loads. The chat template follows DeepSeek-R1's.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY_SIZE = 4096
BEGIN, END, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
SPECIAL_TOKENS = (
    *(BEGIN, END, PAD, USER, ASSISTANT, "<think>", "</think>"),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
    *("<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),
    *("<｜tool▁sep｜>", "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)
BEGIN_ID, END_ID = 0, 1

_CJK = "[一-龥぀-ゟ゠-ヿ]+"
_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{{ bos_token }}"
    "{% for message in messages if message['role'] == 'system' %}{{ message['content'] }}{% endfor %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '" + USER + "' + message['content'] }}{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '" + ASSISTANT + "' + content + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def untrained() -> Tokenizer:
    """DeepSeek-V3's pipeline (numbers by threes, CJK runs, words and punctuation, bytes) with an empty vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    isolated = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in (r"\p{N}{1,3}", _CJK, _WORDS)]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*isolated, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train(texts: Iterator[str], vocabulary_size: int = VOCABULARY_SIZE) -> Tokenizer:
    """Learns merges from `texts`; the special tokens take the first ids, begin-of-sentence is added to every prompt."""
    tokenizer = untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, BEGIN_ID)]
    )
    return tokenizer


def settings(max_positions: int) -> dict[str, object]:
    """The content of tokenizer_config.json."""
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_positions,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }


def save(tokenizer: Tokenizer, folder: Path, max_positions: int = 4096) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    text = json.dumps(settings(max_positions), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def corpus_sample(path: Path, kinds: dict[str, int]) -> Iterator[str]:
    """Texts from train.jsonl, every file of each kind in turn until that many characters were given."""
    left = dict(kinds)
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            document = json.loads(line)
            if number % 3 == 0 and left.get(document["kind"], 0) > 0:
                left[document["kind"]] -= len(document["text"])
                yield document["text"]


def main() -> None:
    """Trains the tokenizer on a sample of the corpus, as much code as prose."""
    parser = argparse.ArgumentParser(description="Train the demo model's tokenizer.")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    share = {"code": 12_000_000, "prose": 12_000_000}
    save(train(corpus_sample(arguments.corpus / "train.jsonl", share)), arguments.out)


if __name__ == "__main__":
    main()
