"""The work that a gateway has sent to a replica, in tokens, and the prompts it has sent. No clock, no network."""

from collections.abc import Sequence
from dataclasses import dataclass

from outrider.workers.engine.scheduling.blocks import extend_keys, salted
from outrider.workers.types.requests.request import Request

BLOCK_TOKENS = 64
MOST_BLOCKS = 32_768  # remembered per replica (two million tokens); the least recently used are dropped
EXPECTED_OUTPUT_TOKENS = 256  # assumed for outputs without max_tokens or with a larger one


@dataclass(frozen=True, slots=True)
class PrefixKeys:
    """Keys of the prompt's full blocks of BLOCK_TOKENS. Each key is a hash of all tokens up to its block's end."""

    keys: tuple[bytes, ...]

    @classmethod
    def of(cls, token_ids: Sequence[int], salt: str = "") -> "PrefixKeys":
        """`salt`: the request's cache salt."""
        keys: list[bytes] = []
        extend_keys(keys, token_ids, len(token_ids) // BLOCK_TOKENS, BLOCK_TOKENS, salted(b"router", salt))
        return cls(tuple(keys))


@dataclass(slots=True)
class _Work:
    prompt: int  # tokens to compute before the first output token
    output: int


class ReplicaLoad:
    """The live requests of one replica connection, from submission to end, and recent prompt blocks."""

    def __init__(self, most_blocks: int = MOST_BLOCKS) -> None:
        self._live: dict[str, _Work] = {}
        self._blocks: dict[bytes, None] = {}  # in the order of last use
        self._most_blocks = most_blocks

    @property
    def tokens(self) -> int:
        """Remaining work of the live requests."""
        return sum(work.prompt + work.output for work in self._live.values())

    def cached_tokens(self, prefix: PrefixKeys) -> int:
        """Number of leading prompt tokens that were sent to the replica before."""
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
        for key in reversed(prefix.keys):  # so that a prompt's last blocks are dropped first
            self._blocks.pop(key, None)
            self._blocks[key] = None
        while len(self._blocks) > self._most_blocks:
            del self._blocks[next(iter(self._blocks))]

    def prefilled(self, request_id: str) -> None:
        """Removes the prompt from the work, once the first token has arrived."""
        if request_id in self._live:
            self._live[request_id].prompt = 0

    def end(self, request_id: str) -> None:
        self._live.pop(request_id, None)


def _expected_output(request: Request) -> int:
    limit = request.params.max_tokens
    left = [EXPECTED_OUTPUT_TOKENS if limit is None else limit - len(one.token_ids) for one in request.outputs]
    return sum(min(EXPECTED_OUTPUT_TOKENS, max(1, tokens)) for tokens in left)
