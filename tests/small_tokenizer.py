"""A small byte-level tokenizer, trained on the spot, in a directory that looks like a checkpoint's."""

from pathlib import Path

from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.training import tokenizer as training

TEXTS = (
    "the quick brown fox jumps over the lazy dog. " * 4,
    "def add(left: int, right: int) -> int:\n    return left + right\n" * 4,
    "naïve café, 你好世界, здравствуй мир, 👩‍👩‍👧 🎉 " * 4,
)
VOCABULARY_SIZE = 400


def write_tokenizer(folder: Path) -> Path:
    """tokenizer.json and tokenizer_config.json, with a chat template."""
    training.save(training.train(iter(TEXTS), VOCABULARY_SIZE), folder)
    return folder


def load_tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.load(write_tokenizer(folder))
    assert tokenizer is not None
    return tokenizer
