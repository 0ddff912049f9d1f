"""Multi-token prediction: the module that drafts (DeepSeek-V3, arXiv 2412.19437, section 2.2), beside the first stage.

The pair (h_i, t_{i+1}) lives at slot i+1 of the module's own cache layer, with rotary position i: so a slot depends on
tokens up to its own only, and blocks may be shared by their tokens' hash. Slot 0 is never seen. The module drafts
several tokens by recursion: it is fed its own state *after* `shared_head.norm`, which is what it was trained on.

Of a model with several modules only the first is loaded, and drafts every token. Module k+1 would attend to its own
pair of every earlier token, made from module k's state there; a sequence that found its prompt's blocks in the cache
has not computed those states.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from outrider.workers.errors import CheckpointError
from outrider.workers.model.attention import LatentCache
from outrider.workers.model.batch import Batch
from outrider.workers.model.config import ModelConfig
from outrider.workers.model.deepseek import Stage
from outrider.workers.model.layers import RmsNorm, SharedProduct
from outrider.workers.model.linear import Linear
from outrider.workers.model.loading import DecoderLayer, LayerLoader
from outrider.workers.model.rotary import Rotation
from outrider.workers.model.rows import Rows
from outrider.workers.model.weights import Checkpoint, mtp_marker


class MtpModule(nn.Module):
    """Joins the next token's embedding with the state before it; one decoder layer; the head's norm."""

    def __init__(
        self, embedding_norm: RmsNorm, hidden_norm: RmsNorm, join: SharedProduct, decoder: DecoderLayer, norm: RmsNorm
    ) -> None:
        super().__init__()
        self.embedding_norm, self.hidden_norm, self.join = embedding_norm, hidden_norm, join
        self.decoder, self.norm = decoder, norm

    def forward(self, batch: Batch, embedded: Tensor, hidden: Tensor, rotation: Rotation, cache: Tensor) -> Tensor:
        joined = self.join(torch.cat([self.embedding_norm(embedded), self.hidden_norm(hidden)], dim=-1))
        state: Tensor = self.norm(self.decoder(batch, joined, rotation, cache))
        return state


class MtpModules(nn.Module):
    """The first MTP module of a model, with its cache layer. It shares the first stage's embedding and the head."""

    def __init__(self, stage: Stage, module: MtpModule, cache: LatentCache, head: Linear) -> None:
        super().__init__()
        self._embedding, self._rotary, self._head = stage.embedding, stage.rotary, head
        self.sharing = stage.sharing
        self._embedded = stage.sharing.columns(module.embedding_norm.weight.shape[0], "embeddings")
        self._block_size = stage.block_size
        self.module = module
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
        """Read the first MTP module of `checkpoint`, to live with its first stage `stage`.

        CheckpointError if it has none (`Checkpoint.has_mtp` tells). The head is read again only where `stage` lacks it.
        """
        if not checkpoint.has_mtp(config):
            raise CheckpointError(
                f"checkpoint {checkpoint.path} has no MTP weights ({mtp_marker(config)}): it cannot draft for itself"
            )
        loader = LayerLoader.of(
            config, checkpoint, numerics=numerics, device=device, dtype=dtype, sharing=stage.sharing
        )
        module = _load_module(loader, config.num_hidden_layers)
        cache = LatentCache(1, config, block_size, loader.dtype, loader.device)
        return cls(stage, module, cache, stage.head if stage.head is not None else loader.head())

    @property
    def cache_bytes_per_block(self) -> int:
        return self.cache.bytes_per_block

    def allocate_cache(self, num_blocks: int) -> None:
        self.cache.allocate(num_blocks)

    def run(self, rows: Rows, hidden: Tensor) -> Tensor:
        """As `forward`, from flat arrays."""
        return self.forward(Batch.of(rows, self._block_size, self.cache.device), hidden)

    @torch.inference_mode()
    def forward(self, batch: Batch, hidden: Tensor) -> Tensor:
        """The states after `shared_head.norm` [R, hidden].

        A row of `batch` is the pair (h_i, t_{i+1}): its token id is t_{i+1}, its rotary position i, its cache position
        i+1, and `hidden` [R, hidden] is h_i after the final norm, or in a draft's later steps the state returned last.
        """
        if not batch.rows and not self.sharing.shard.spread:
            return hidden
        assert self._embedding is not None, "MTP modules live with the first stage"
        embedded = self._embedded(functional.embedding(batch.token_ids, self._embedding))
        rotation = self._rotary.at(batch.rope_positions)
        state: Tensor = self.module(batch, embedded, hidden, rotation, self.cache.layers[0])
        return state

    @torch.inference_mode()
    def logits(self, state: Tensor) -> Tensor:
        """The next-but-one token's logits, from what `forward` returned: [n, own vocabulary] in float32."""
        logits: Tensor = self._head(state)
        return logits.float()


def _load_module(loader: LayerLoader, number: int) -> MtpModule:
    hidden, name = loader.config.hidden_size, f"layers.{number}."
    return MtpModule(
        loader.norm(name + "enorm", hidden),
        loader.norm(name + "hnorm", hidden),
        SharedProduct(
            loader.linear(loader.own(name + "eh_proj", hidden), inputs=2 * hidden), loader.columns("embeddings")
        ),
        loader.layer(number),
        loader.norm(name + "shared_head.norm", hidden),
    )
