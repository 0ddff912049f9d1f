"""Counts the blocks of the latent KV cache: who holds them, and which hold a prefix worth keeping.

A block is free, or held by one or more sequences. A free block may still be cached: its entries stay readable
under its key until the block is taken again, least recently released first. Knows nothing of tensors or of what
the entries are.
"""

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

_KEY_BYTES = 16


def blocks_needed(slots: int, block_size: int) -> int:
    """Blocks that hold `slots` slots."""
    return -(-slots // block_size)


def extend_keys(keys: list[bytes], token_ids: Sequence[int], blocks: int, block_size: int, salt: bytes) -> None:
    """Makes `keys` cover the first `blocks` full blocks of the tokens.

    A key stands for every token up to its block's end (cryptographically, so that a prompt cannot be made to read
    another's entries), and for the salt.
    """
    for index in range(len(keys), blocks):
        parent = keys[-1] if keys else salt
        tokens = array("i", token_ids[index * block_size : (index + 1) * block_size])
        keys.append(blake2b(parent + tokens.tobytes(), digest_size=_KEY_BYTES).digest())


def salted(kind: bytes, salt: str) -> bytes:
    """Where keys of a kind begin, for requests with this salt."""
    return blake2b(kind + b"\0" + salt.encode(), digest_size=_KEY_BYTES).digest() if salt else kind


class BlockPool:
    """Reference-counted blocks, numbered 0 .. num_blocks - 1."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._blank = list(range(num_blocks - 1, -1, -1))  # free and not cached; taken from the end
        self._kept: dict[int, None] = {}  # free and cached; the first was released longest ago
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """Blocks that `take` could give."""
        return len(self._blank) + len(self._kept)

    def references(self, block: int) -> int:
        """How many sequences hold the block."""
        return self._references[block]

    def is_cached(self, block: int) -> bool:
        """Whether the block can be found by its key, and so must not be written."""
        return block in self._key_of

    def take(self, count: int) -> list[int] | None:
        """`count` blocks, each held once, or None (and nothing taken) if that many are not free."""
        if count > self.free:
            return None
        while len(self._blank) < count:
            self._forget(next(iter(self._kept)))
        split = len(self._blank) - count
        taken, self._blank[split:] = self._blank[split:], []
        for block in taken:
            self._references[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Holds cached blocks once more."""
        for block in blocks:
            self._kept.pop(block, None)
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Gives back one hold on each. Of a sequence's blocks the last are the first to be forgotten."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._key_of:
                    self._kept[block] = None
                else:
                    self._blank.append(block)

    def publish(self, block: int, key: bytes) -> None:
        """Lets others find a held block by its key. Where an equal block is cached already, that one stays."""
        if key not in self._block_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The cached blocks of the longest run of leading keys that are all cached. Holds nothing: see `share`."""
        found = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def free_among(self, blocks: Iterable[int]) -> int:
        """How many of the blocks are free."""
        return sum(1 for block in blocks if self._references[block] == 0)

    def _forget(self, block: int) -> None:
        del self._kept[block]
        del self._block_of[self._key_of.pop(block)]
        self._blank.append(block)
