"""What one gateway has given one replica to do, in tokens, and which prompts it has given. No clock, no network."""

from collections.abc import Sequence
from dataclasses import dataclass

from outrider.workers.engine.blocks import extend_keys, salted
from outrider.workers.types.request import Request

BLOCK_TOKENS = 64
MOST_BLOCKS = 32_768  # remembered for each replica: two million tokens; then the least recently used go
EXPECTED_OUTPUT_TOKENS = 256  # assumed for outputs without max_tokens or with a larger one


@dataclass(frozen=True, slots=True)
class PrefixKeys:
    """The prompt's full blocks of BLOCK_TOKENS, each by a key that stands for all tokens up to its end."""

    keys: tuple[bytes, ...]

    @classmethod
    def of(cls, token_ids: Sequence[int], salt: str = "") -> "PrefixKeys":
        """`salt`: as the request's."""
        keys: list[bytes] = []
        extend_keys(keys, token_ids, len(token_ids) // BLOCK_TOKENS, BLOCK_TOKENS, salted(b"router", salt))
        return cls(tuple(keys))


@dataclass(slots=True)
class _Work:
    prompt: int  # tokens to compute before the first output token
    output: int


class LoadBook:
    """Owned by a replica's connection; a request is in it from its submission to its end."""

    def __init__(self, most_blocks: int = MOST_BLOCKS) -> None:
        self._live: dict[str, _Work] = {}
        self._blocks: dict[bytes, None] = {}  # the first was used longest ago
        self._most_blocks = most_blocks

    @property
    def tokens(self) -> int:
        """Work that the live requests still have."""
        return sum(work.prompt + work.output for work in self._live.values())

    def cached_tokens(self, prefix: PrefixKeys) -> int:
        """Leading tokens of the prompt that the replica has been given before."""
        found = 0
        for key in prefix.keys:
            if key not in self._blocks:
                break
            found += 1
        return found * BLOCK_TOKENS

    def begin(self, request: Request, prefix: PrefixKeys) -> None:
        given = sum(len(output.token_ids) for output in request.resumed)
        uncached = max(0, len(request.prompt_token_ids) - self.cached_tokens(prefix))
        self._live[request.request_id] = _Work(uncached + given, _expected_output(request))
        for key in reversed(prefix.keys):  # so that of one prompt the last blocks are the first to go
            self._blocks.pop(key, None)
            self._blocks[key] = None
        while len(self._blocks) > self._most_blocks:
            del self._blocks[next(iter(self._blocks))]

    def prefilled(self, request_id: str) -> None:
        """Its first token came."""
        if request_id in self._live:
            self._live[request_id].prompt = 0

    def end(self, request_id: str) -> None:
        self._live.pop(request_id, None)


def _expected_output(request: Request) -> int:
    limit = request.params.max_tokens
    left = [EXPECTED_OUTPUT_TOKENS if limit is None else limit - len(one.token_ids) for one in request.outputs]
    return sum(min(EXPECTED_OUTPUT_TOKENS, max(1, tokens)) for tokens in left)
