"""Multi-token prediction: the drafting modules (DeepSeek-V3, arXiv 2412.19437, section 2.2), beside the first stage.

A module's pair at slot j of its cache layer joins token t_j with the previous module's state at slot j-1; for the
first module that is the model's, h_{j-1}. So a slot depends only on tokens up to its own, and blocks can be shared by
their tokens' hash. Module k (from 0) uses rotary position j-1-k, and has nothing before slot k+1.

Each module drafts one token further than the previous one. For more drafts the last module runs recursively: its input
is its own state *after* `shared_head.norm`, as in training.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from outrider.workers.model.batch import Batch
from outrider.workers.model.cache import Cache
from outrider.workers.model.deepseek import Stage
from outrider.workers.model.layers import RmsNorm, SharedProduct
from outrider.workers.model.linear import Linear
from outrider.workers.model.loading import DecoderLayer, LayerLoader
from outrider.workers.model.rotary import Rotation
from outrider.workers.model.rows import IntArray, Rows
from outrider.workers.model.weights import Checkpoint, mtp_marker
from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.model.model_config import ModelConfig


class MtpModule(nn.Module):
    """Joins the next token's embedding with the state before it; one decoder layer; the head's norm."""

    def __init__(
        self, embedding_norm: RmsNorm, hidden_norm: RmsNorm, join: SharedProduct, decoder: DecoderLayer, norm: RmsNorm
    ) -> None:
        super().__init__()
        self.embedding_norm, self.hidden_norm, self.join = embedding_norm, hidden_norm, join
        self.decoder, self.norm = decoder, norm

    def forward(self, batch: Batch, embedded: Tensor, hidden: Tensor, rotation: Rotation, cache: Tensor) -> Tensor:
        state: Tensor = self.norm(self.decoder(batch, self._joined(embedded, hidden), rotation, cache))
        return state

    def fill(self, batch: Batch, embedded: Tensor, hidden: Tensor, rotation: Rotation, cache: Tensor) -> None:
        """Only writes the pairs' cache slots."""
        self.decoder.fill(batch, self._joined(embedded, hidden), rotation, cache)

    def _joined(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        joined: Tensor = self.join(torch.cat([self.embedding_norm(embedded), self.hidden_norm(hidden)], dim=-1))
        return joined


class MtpModules(nn.Module):
    """A model's MTP modules, each with its cache layer. They share the first stage's embedding and the head."""

    def __init__(self, stage: Stage, modules: Sequence[MtpModule], cache: Cache, head: Linear) -> None:
        super().__init__()
        self._embedding, self._rotary, self._head = stage.embedding, stage.rotary, head
        self.sharing = stage.sharing
        self._embedded = stage.sharing.columns(modules[0].embedding_norm.weight.shape[0], "embeddings")
        self._block_size = stage.block_size
        self.modules_in_turn = nn.ModuleList(modules)
        self.cache = cache

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        checkpoint: Checkpoint,
        stage: Stage,
        *,
        numerics: str,
        device: torch.device | str,
        dtype: torch.dtype,
        block_size: int,
    ) -> "MtpModules":
        """Reads the MTP modules of `checkpoint`, for its first stage `stage`.

        CheckpointError if it has none (see `Checkpoint.mtp_modules`). The head is only read if `stage` has none.
        """
        count = checkpoint.mtp_modules(config)
        if not count:
            raise CheckpointError(
                f"checkpoint {checkpoint.path} has no MTP weights ({mtp_marker(config)}): it cannot draft for itself"
            )
        loader = LayerLoader.of(
            config, checkpoint, numerics=numerics, device=device, dtype=dtype, sharing=stage.sharing
        )
        modules = [_load_module(loader, config.num_hidden_layers + number) for number in range(count)]
        cache = Cache(count, loader.cache_width, block_size, loader.dtype, loader.device)
        return cls(stage, modules, cache, stage.head if stage.head is not None else loader.head())

    @property
    def count(self) -> int:
        return len(self.modules_in_turn)

    @property
    def cache_bytes_per_block(self) -> int:
        return self.cache.bytes_per_block

    def allocate_cache(self, num_blocks: int) -> None:
        self.cache.allocate(num_blocks)

    def run(self, rows: Rows, hidden: Tensor, module: int = 0, wanted: IntArray | None = None) -> Tensor:
        """As `forward`, from flat arrays in which the pair at slot j has position j-1 for every module.

        `wanted`: the rows whose states are needed, ascending; None: all. Other rows only write their slots, which is
        cheap.
        """
        if module:
            turned, seen = rows.rope_positions - module, rows.first_slots + module
            rows = replace(rows, rope_positions=turned, first_slots=seen)
        return self.forward(Batch.of(rows, self._block_size, self.cache.device, wanted), hidden, module)

    @torch.inference_mode()
    def forward(self, batch: Batch, hidden: Tensor, module: int = 0) -> Tensor:
        """The wanted rows' states of module number `module` after `shared_head.norm` [W, hidden].

        A row of `batch` is the pair at slot j: its token id is t_j, its rotary position j-1-module, its cache position
        j. `hidden` [R, hidden] is the previous module's state at slot j-1 (for the first module h_{j-1} after the
        final norm), or in recursion the module's own.
        """
        if not batch.rows and not self.sharing.shard.spread:
            return hidden
        assert self._embedding is not None, "MTP modules are on the first stage"
        embedded = self._embedded(functional.embedding(batch.token_ids, self._embedding))
        rotation = self._rotary.at(batch.rope_positions)
        own, cache = self.modules_in_turn[module], self.cache.layers[module]
        assert isinstance(own, MtpModule)
        if not batch.wanted_rows and not self.sharing.shard.spread:
            own.fill(batch, embedded, hidden, rotation, cache)
            return hidden[:0]
        state: Tensor = own(batch, embedded, hidden, rotation, cache)
        return state

    @torch.inference_mode()
    def logits(self, state: Tensor) -> Tensor:
        """Logits of the token after a module's own, from states of `forward`: [n, own vocabulary] in float32."""
        logits: Tensor = self._head(state)
        return logits.float()


def _load_module(loader: LayerLoader, number: int) -> MtpModule:
    hidden, name = loader.config.hidden_size, f"layers.{number}."
    return MtpModule(
        loader.norm(name + "enorm", hidden),
        loader.norm(name + "hnorm", hidden),
        SharedProduct(
            loader.linear(loader.own(name + "eh_proj", hidden), inputs=2 * hidden),
            loader.sharing.columns(hidden, "embeddings"),
        ),
        loader.layer(number),
        loader.norm(name + "shared_head.norm", hidden),
    )
