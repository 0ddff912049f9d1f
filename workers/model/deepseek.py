"""A stage of the model: a range of layers, the embedding before the first, the final norm and head after the last."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from outrider.workers.model.batch import Batch
from outrider.workers.model.cache import Cache
from outrider.workers.model.layers import RmsNorm
from outrider.workers.model.linear import Linear
from outrider.workers.model.loading import DecoderLayer, LayerLoader, Progress
from outrider.workers.model.rotary import Rotary
from outrider.workers.model.rows import Rows
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.types.model.model_config import ModelConfig

_WIDTH_PER_THREAD = 512  # outputs of a layer
_VALUES_PER_THREAD = 8192  # of a round's hidden states


def compute_threads(hidden_size: int, rows: int, available: int) -> int:
    """How many threads pay: a narrow layer on few rows ends before threads wake up (scout: one beats two).

    The number of threads changes no bits.
    """
    wanted = max(hidden_size // _WIDTH_PER_THREAD, hidden_size * rows // _VALUES_PER_THREAD)
    return max(1, min(available, wanted))


class Stage(nn.Module):
    """Layers `layers` of a model, and their cache.

    On a CPU with numerics "exact", a row's bits depend only on its tokens.

    The first stage has `embedding` (this rank's columns); the last has `norm` and `head`.
    """

    def __init__(
        self,
        layers: list[DecoderLayer],
        rotary: Rotary,
        cache: Cache,
        *,
        embedding: Tensor | None,
        norm: RmsNorm | None,
        head: Linear | None,
        hidden_size: int,
        block_size: int,
        sharing: Sharing,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.rotary = rotary
        self.cache = cache
        self.embedding = None if embedding is None else nn.Parameter(embedding, requires_grad=False)
        self.norm = norm
        self.head = head
        self.block_size = block_size
        self.sharing = sharing
        self._embedded = sharing.columns(hidden_size, "embeddings")
        self._hidden_size = hidden_size
        self._device = cache.device
        self._threads = torch.get_num_threads()  # the most to use

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        checkpoint: Checkpoint,
        layers: range,
        *,
        numerics: str,
        device: torch.device | str,
        dtype: torch.dtype,
        block_size: int,
        progress: Progress | None = None,
        sharing: Sharing | None = None,
    ) -> "Stage":
        """Reads the layers in `layers`, and the embedding or head. Calls `progress` after each layer."""
        device = torch.device(device)
        loader = LayerLoader.of(config, checkpoint, numerics=numerics, device=device, dtype=dtype, sharing=sharing)
        last = layers.stop == config.num_hidden_layers
        decoders = []
        for number in layers:
            decoders.append(loader.layer(number))
            if progress is not None:
                progress(len(decoders), len(layers))
        return cls(
            decoders,
            Rotary(config, device),
            Cache(len(layers), loader.cache_width, block_size, dtype, device),
            embedding=loader.embedding() if layers.start == 0 else None,
            norm=loader.norm("norm", config.hidden_size) if last else None,
            head=loader.head() if last else None,
            hidden_size=config.hidden_size,
            block_size=block_size,
            sharing=loader.sharing,
        )

    @property
    def cache_bytes_per_block(self) -> int:
        return self.cache.bytes_per_block

    def allocate_cache(self, num_blocks: int) -> None:
        """Allocates blocks 0..num_blocks-1. Call once, before the first round."""
        self.cache.allocate(num_blocks)

    @torch.inference_mode()
    def run(self, rows: Rows, hidden: Tensor | None, lane: int = 0) -> Tensor:
        """`hidden` [R, hidden], or None on the first stage, which embeds -> [R, hidden]; normed on the last stage.

        Lanes share no state, so `lane` has no effect.
        """
        torch.set_num_threads(compute_threads(self._hidden_size, len(rows), self._threads))  # the calling thread's
        batch = Batch.of(rows, self.block_size, self._device)
        return self.forward(batch, self.embed(batch) if hidden is None else hidden)

    @torch.inference_mode()
    def embed(self, batch: Batch) -> Tensor:
        """[R, hidden]; first stage only."""
        assert self.embedding is not None, "only the first stage embeds"
        return self._embedded(functional.embedding(batch.token_ids, self.embedding))

    @torch.inference_mode()
    def forward(self, batch: Batch, hidden: Tensor) -> Tensor:
        """`hidden` [R, hidden] through the stage's layers -> [R, hidden]; on the last stage after the final norm."""
        if batch.rows or self.sharing.shard.spread:  # other ranks' rows may need this rank's experts
            rotation = self.rotary.at(batch.rope_positions)
            for layer, cache in zip(self.layers, self.cache.layers, strict=True):
                hidden = layer(batch, hidden, rotation, cache)
        return hidden if self.norm is None else self.norm(hidden)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """`hidden` [n, hidden] after the final norm -> [n, own vocabulary] in float32; last stage only."""
        assert self.head is not None, "only the last stage has the head"
        logits: Tensor = self.head(hidden)
        return logits.float()
