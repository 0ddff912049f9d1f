"""Cuts benchmark prompts from held-out files: `python -m outrider.workers.training.prompts`.

Only files with permissive licences are used, and none of the training files. A prompt starts at a definition or a
paragraph and ends in its middle, so that it can be continued.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from outrider.workers.training.corpus import name_hash

SHORTEST, LONGEST = 60, 200
_STARTS = {
    "code": re.compile(r"^(?:def |class |@|    def |import |from )", re.MULTILINE),
    "prose": re.compile(r"(?<=\n\n)[A-Z#][^\n]{80,}"),
}


def excerpts(document: dict[str, str], tokenizer: Tokenizer, most: int) -> Iterator[str]:
    """Up to `most` excerpts of a document, spread over it, each of SHORTEST..LONGEST tokens."""
    starts = [match.start() for match in _STARTS[document["kind"]].finditer(document["text"])]
    for start in starts[:: max(1, len(starts) // most)][:most]:
        size = SHORTEST + name_hash(document["path"], str(start)) % (LONGEST - SHORTEST)
        encoding = tokenizer.encode(document["text"][start : start + 2000], add_special_tokens=False)
        text = document["text"][start : start + encoding.offsets[min(size, len(encoding.ids)) - 1][1]].rstrip()
        if len(tokenizer.encode(text, add_special_tokens=False).ids) >= SHORTEST:
            yield text


def choose(documents: list[dict[str, str]], tokenizer: Tokenizer, kind: str, count: int) -> list[str]:
    """`count` excerpts of one kind, from as many files as possible, in the order of a hash."""
    files = [document for document in documents if document["kind"] == kind and document["permissive"]]
    files.sort(key=lambda document: name_hash(document["package"], document["path"]))
    found = [list(excerpts(document, tokenizer, 4)) for document in files]
    by_turn = [texts[turn] for turn in range(4) for texts in found if turn < len(texts)]
    return list(dict.fromkeys(by_turn))[:count]


def main() -> None:
    """Writes {"code": [...], "prose": [...]} to --out."""
    parser = argparse.ArgumentParser(description="Cut prompts from the corpus: from held-out text, for benchmarks.")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=40, help="of each kind")
    parser.add_argument("--split", choices=["heldout", "train"], default="heldout", help="train: to distil from")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer / "tokenizer.json"))
    documents = [json.loads(line) for line in (arguments.corpus / f"{arguments.split}.jsonl").read_text().splitlines()]
    chosen = {kind: choose(documents, tokenizer, kind, arguments.count) for kind in _STARTS}
    arguments.out.write_text(json.dumps(chosen, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
