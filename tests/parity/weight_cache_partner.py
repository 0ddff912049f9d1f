"""Loads a model's packed weights out of a cache, beside others that do the same, and says what that took.

python weight_cache_partner.py CHECKPOINT FOLDER

One line of JSON once it is loaded, and another one for every line on its standard input.
"""

import json
import logging
import re
import sys
from pathlib import Path

from rounds import CompiledModel, Rows, random_tokens

from outrider.workers.model.compiled.weight_cache import WeightCache
from outrider.workers.model.weights import Checkpoint


class Made(logging.Handler):
    """Counts the files that this process made."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.getMessage().startswith("packed ")


def mapped_kib(folder: Path) -> dict[str, int]:
    """What smaps says of the files in `folder`, in all."""
    found: dict[str, int] = {"writable": 0}
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = str(folder) in line
            found["writable"] += ours and "w" in line.split()[1]
        elif ours and line.endswith(" kB"):
            name, size = line.removesuffix(" kB").split(":")
            found[name] = found.get(name, 0) + int(size)
    return found


def main() -> None:
    checkpoint, folder = Path(sys.argv[1]), Path(sys.argv[2])
    made, log = Made(), logging.getLogger("outrider.loading")
    log.addHandler(made)
    log.setLevel(logging.INFO)
    model = CompiledModel.load(checkpoint, drafts=True, cache=WeightCache(folder, 1 << 30, Checkpoint(checkpoint)))
    logits = model.logits(model.hidden(Rows(random_tokens(20, 97, 0), 0, range(2))))
    print(json.dumps({"made": made.count, "logits": logits.tolist()}), flush=True)  # noqa: T201  # the test reads it
    for _ in sys.stdin:
        print(json.dumps(mapped_kib(folder)), flush=True)  # noqa: T201  # the test reads it


if __name__ == "__main__":
    main()
