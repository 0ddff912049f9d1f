"""The block pool of the latent KV cache: reference counts, and lookup of blocks that hold a cached prefix.

A block is free or held by one or more sequences. A free block may still be cached: it can be found by its key until
it is taken again, least recently released first. Knows nothing of tensors or of a block's contents.
"""

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

_KEY_BYTES = 16


def blocks_needed(slots: int, block_size: int) -> int:
    """Number of blocks for `slots` slots."""
    return -(-slots // block_size)


def extend_keys(keys: list[bytes], token_ids: Sequence[int], blocks: int, block_size: int, salt: bytes) -> None:
    """Extends `keys` to the first `blocks` full blocks of the tokens.

    A key is a hash of the salt and of all tokens up to the block's end. The hash is cryptographic, so that no prompt
    can be constructed to collide with another prompt's blocks.
    """
    for index in range(len(keys), blocks):
        parent = keys[-1] if keys else salt
        tokens = array("i", token_ids[index * block_size : (index + 1) * block_size])
        keys.append(blake2b(parent + tokens.tobytes(), digest_size=_KEY_BYTES).digest())


def salted(kind: bytes, salt: str) -> bytes:
    """The initial value of a chain of keys: depends on the kind of entries and on the request's cache salt."""
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
        """Number of blocks that `take` can return."""
        return len(self._blank) + len(self._kept)

    def references(self, block: int) -> int:
        """Number of sequences that hold the block."""
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
        """Adds one reference to each of these cached blocks."""
        for block in blocks:
            self._kept.pop(block, None)
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Removes one reference from each block. A sequence's last blocks are evicted first."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._key_of:
                    self._kept[block] = None
                else:
                    self._blank.append(block)

    def publish(self, block: int, key: bytes) -> None:
        """Makes a held block available under its key. If the key has a block already, nothing changes."""
        if key not in self._block_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the longest prefix of `keys` that is cached. Takes no references: see `share`."""
        found = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def free_among(self, blocks: Iterable[int]) -> int:
        """Number of these blocks that are free."""
        return sum(1 for block in blocks if self._references[block] == 0)

    def _forget(self, block: int) -> None:
        del self._kept[block]
        del self._block_of[self._key_of.pop(block)]
        self._blank.append(block)
