"""A stage of the model on a GPU: the same few kernels a layer, however many rows and whatever context a round has.

Per layer: latents, queries, attention, its output, routing, experts; norms are joined with the sums before them. The
arithmetic is model/deepseek.py's in other orders of sums, fixed by the model (kernels/gpu): a row's bits do not depend
on its company. Where ranks share the stage, each has its heads, and its slice of every expert or whole experts, and
parts are added up over ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from outrider.kernels.gpu.choose import choose
from outrider.kernels.gpu.experts import experts
from outrider.kernels.gpu.latents import latents
from outrider.kernels.gpu.mla import mla
from outrider.kernels.gpu.norms import join_norm, norm, pair_norms, weigh
from outrider.kernels.gpu.queries import queries
from outrider.kernels.gpu.reduce import sum_join_norm
from outrider.kernels.gpu.values import values
from outrider.workers.model.cache import Cache
from outrider.workers.model.config import ModelConfig
from outrider.workers.model.gpu_batch import GpuBatch, batches_of
from outrider.workers.model.gpu_graphs import Graphs, Run, capture
from outrider.workers.model.gpu_weights import GpuAttention, GpuLayer, GpuLoader, GpuModule, GpuMoe, Stack, Weight
from outrider.workers.model.layers import LATENT_NORM_EPS
from outrider.workers.model.loading import Progress
from outrider.workers.model.rotary import rotary_table
from outrider.workers.model.rows import IntArray, Rows
from outrider.workers.parallel.sharing import Sharing

_LEAST = 16  # of a side of a tensor core's product


def shape_obstacle(config: ModelConfig) -> str | None:
    """Why kernels/gpu cannot run a model of this shape; None: they can."""
    sizes = {
        name: getattr(config, name) for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    }
    for name, size in sizes.items():
        if size < _LEAST or size & (size - 1):
            return f"{name} = {size} is not a power of two from {_LEAST} on"
    return None


class Decoder:
    """Runs layers one after another. What stages and MTP modules have in common."""

    def __init__(
        self,
        config: ModelConfig,
        sharing: Sharing,
        table: Tensor,
        block_size: int,
        dtype: torch.dtype,
    ) -> None:
        self.peers = sharing.peers
        self.config, self.sharing, self.table = config, sharing, table
        self.block_size, self.dtype, self.device = block_size, dtype, table.device
        heads = sharing.shard.heads(config.num_attention_heads)
        self._row_bytes = 4 * (heads.stop - heads.start) * config.kv_lora_rank
        self._sums = sharing.sum("layer outputs") if sharing.tensor.size > 1 else None
        self._embedded = sharing.columns(config.hidden_size, "embeddings")
        self._dense = _DenseRoute(table.device)

    @property
    def capturable(self) -> bool:
        """Whether no layer waits for another rank but in a kernel of its own."""
        return torch.version.cuda is not None and (self.sharing.tensor.size == 1 or self.peers is not None)

    @property
    def width(self) -> int:
        """Values that a token keeps in the cache of one layer."""
        return self.config.head_dim_latent

    def batch(self, rows: Rows, wanted: IntArray | None = None) -> GpuBatch:
        return batches_of([rows], self.block_size, self.device, self._row_bytes, wanted)[0]

    def batches(self, rounds: Sequence[Rows]) -> list[GpuBatch]:
        """All in one copy."""
        return batches_of(rounds, self.block_size, self.device, self._row_bytes)

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        """[R] -> [R, hidden]."""
        return self._embedded(functional.embedding(token_ids, table))

    def join(self, hidden: Tensor, outputs: Tensor, weights: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The stream with what was made added to it, everybody's parts of it; and its norm."""
        if self.peers is not None and len(hidden) <= self.peers.most_rows:
            peers, eps = self.peers, self.config.rms_norm_eps
            stream, normed = sum_join_norm(
                hidden, outputs, weights, weight, eps, peers.addresses, peers.epochs, peers.rank, peers.group
            )
            return stream, normed
        if self._sums is not None:
            outputs, weights = self._sums(outputs if weights is None else weigh(outputs, weights)), None
        stream, normed = join_norm(hidden, outputs, weights, weight, self.config.rms_norm_eps)
        return stream, normed

    def layer(
        self, layer: GpuLayer, batch: GpuBatch, hidden: Tensor, normed: Tensor, cache: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The stream after attention, and what the MLP adds to it: outputs [R * places, hidden] and their weights."""
        hidden, normed = self.join(hidden, self._attend(layer.attention, batch, normed, cache), None, layer.post_norm)
        if isinstance(layer.mlp, GpuMoe):
            return hidden, *self._moe(layer.mlp, normed)
        return hidden, _run(layer.mlp, normed, self._dense.ids(len(normed)), whole=True), None

    def _attend(self, own: GpuAttention, batch: GpuBatch, normed: Tensor, cache: Tensor) -> Tensor:
        """[R, hidden]: this rank's heads' part."""
        low = own.down(normed)
        query = latents(
            low, own.query_norm, own.latent_norm, self.table, batch.positions, batch.slots, cache, LATENT_NORM_EPS
        )
        if own.query_up is not None:
            query = own.query_up(query)
        query = queries(query, own.key_up, self.table, batch.positions)
        made = [self._attend_piece(own, batch, query, cache, *each) for each in _pieces(batch)]
        return own.output(made[0] if len(made) == 1 else torch.cat(made))

    def _attend_piece(
        self, own: GpuAttention, batch: GpuBatch, query: Tensor, cache: Tensor, rows: slice, tiles: slice
    ) -> Tensor:
        seen, rank, scale = batch.seen[rows], self.config.kv_lora_rank, self.config.softmax_scale
        parts, logs = mla(
            query[rows], cache, batch.tiles[tiles], batch.pages, seen, self.block_size, rank, scale, batch.splits
        )
        out: Tensor = values(parts, logs, seen, own.value_up)
        return out

    def _moe(self, own: GpuMoe, x: Tensor) -> tuple[Tensor, Tensor | None]:
        config = self.config
        logits = own.router(x if own.router.values.dtype == x.dtype else x.float(), wide=True)
        ids, weights = choose(
            logits, own.bias, config.num_experts_per_tok, config.n_group, min(config.topk_group, config.n_group),
            config.norm_topk_prob, config.routed_scaling_factor, config.n_shared_experts,
        )  # fmt: skip
        spread = self.sharing.shard.spread
        outputs = _run(own.experts, x, ids - own.experts.first if spread else ids, whole=not spread)
        if own.shared is None:
            return outputs, weights
        beside = _run(own.shared, x, ids - own.shared.first, whole=False)
        return weigh(outputs, weights) + weigh(beside, weights), None


def _run(stack: Stack, x: Tensor, ids: Tensor, *, whole: bool) -> Tensor:
    out: Tensor = experts(x, ids, stack.gate_up.values, stack.gate_up.scale, stack.down.values, stack.down.scale, whole)
    return out


def _pieces(batch: GpuBatch) -> list[tuple[slice, slice]]:
    return [(piece.rows, piece.tiles) for piece in batch.pieces]


class _DenseRoute:
    """The one expert that all rows of a dense layer go to."""

    def __init__(self, device: torch.device) -> None:
        self._ids = torch.zeros(64, 1, dtype=torch.int32, device=device)

    def ids(self, rows: int) -> Tensor:
        if rows > len(self._ids):
            self._ids = torch.zeros(rows, 1, dtype=torch.int32, device=self._ids.device)
        return self._ids[:rows]


class GpuStage:
    """Layers of a model and their cache. Implements StageModel.

    `embedding` (this rank's columns of it) is there on the first stage; `norm` and `head` on the last.
    """

    def __init__(
        self,
        decoder: Decoder,
        layers: list[GpuLayer],
        cache: Cache,
        *,
        embedding: Tensor | None,
        norm: Tensor | None,
        head: Weight | None,
        in_graphs: bool = False,
    ) -> None:
        """`in_graphs`: rounds of few rows run as graphs, where they can be captured."""
        self._in_graphs = in_graphs
        self.decoder, self.layers, self.cache = decoder, layers, cache
        self.embedding, self.norm, self.head = embedding, norm, head
        self._graphs: Graphs | None = None

    @classmethod
    def load(
        cls,
        loader: GpuLoader,
        layers: range,
        *,
        block_size: int,
        sharing: Sharing,
        progress: Progress,
        in_graphs: bool = False,
    ) -> "GpuStage":
        """Reads the layers, and what goes before or after them. `progress` hears of every layer read."""
        config, last = loader.config, layers.stop == loader.config.num_hidden_layers
        read = []
        for number in layers:
            read.append(loader.layer(number))
            progress(len(read), len(layers))
        table = torch.from_numpy(rotary_table(config)).to(loader.device)
        decoder = Decoder(config, sharing, table, block_size, loader.dtype)
        return cls(
            decoder,
            read,
            Cache(len(layers), decoder.width, block_size, loader.dtype, loader.device),
            embedding=loader.embedding() if layers.start == 0 else None,
            norm=loader.tensor("model.norm.weight", config.hidden_size) if last else None,
            head=loader.head() if last else None,
            in_graphs=in_graphs,
        )

    @property
    def cache_bytes_per_block(self) -> int:
        return self.cache.bytes_per_block

    def allocate_cache(self, num_blocks: int) -> None:
        """Make room for blocks 0..num_blocks-1. To be called once, before the first round."""
        self.cache.allocate(num_blocks)
        if self._in_graphs and self.decoder.capturable:
            self.use_graphs()

    def use_graphs(self, capture: Callable[[Run], Run] = capture) -> None:
        """Rounds of few rows run as graphs from now on. To be called once the cache is there."""
        decoder = self.decoder
        embeds = self.embedding is not None and decoder.sharing.tensor.size == 1
        hidden_size = None if embeds else decoder.config.hidden_size
        self._graphs = Graphs(
            self._embed_and_run, decoder.block_size, hidden_size, decoder.dtype, decoder.device, capture
        )

    @torch.inference_mode()
    def run(self, rows: Rows, hidden: Tensor | None, lane: int = 0) -> Tensor:
        """`hidden` [R, hidden], None on the first stage, which embeds -> [R, hidden]; the last stage's is normed."""
        if self._graphs is None or not self._graphs.fits(rows):
            return self._embed_and_run(self.decoder.batch(rows), hidden)
        if hidden is None and self.decoder.sharing.tensor.size > 1:  # parts of embeddings come over NCCL
            token_ids = torch.from_numpy(rows.token_ids).to(self.decoder.device, non_blocking=True)
            hidden = self._embedded(token_ids)
        return self._graphs.run(rows, hidden)

    def _embed_and_run(self, batch: GpuBatch, hidden: Tensor | None) -> Tensor:
        return self.forward(batch, self._embedded(batch.token_ids) if hidden is None else hidden)

    def _embedded(self, token_ids: Tensor) -> Tensor:
        assert self.embedding is not None, "only the first stage embeds"
        return self.decoder.embed(token_ids, self.embedding)

    @torch.inference_mode()
    def forward(self, batch: GpuBatch, hidden: Tensor) -> Tensor:
        """`hidden` [R, hidden] through the stage's layers."""
        if not batch.rows:
            return hidden
        decoder, following = self.decoder, [layer.input_norm for layer in self.layers[1:]]
        normed = norm(hidden, self.layers[0].input_norm, decoder.config.rms_norm_eps)
        last = self.norm if self.norm is not None else self.layers[0].input_norm  # whose product is not looked at
        for layer, cache, after in zip(self.layers, self.cache.layers, [*following, last], strict=True):
            hidden, outputs, weights = decoder.layer(layer, batch, hidden, normed, cache)
            hidden, normed = decoder.join(hidden, outputs, weights, after)
        return hidden if self.norm is None else normed

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """`hidden` [n, hidden] after the final norm -> [n, own vocabulary] in float32; the last stage's."""
        assert self.head is not None, "only the last stage has the head"
        return self.head(hidden, wide=True)


class GpuModules:
    """A model's MTP modules (model/mtp.py), each with its cache layer, beside the first stage."""

    def __init__(self, stage: GpuStage, modules: list[GpuModule], cache: Cache, head: Weight) -> None:
        assert stage.embedding is not None, "MTP modules live with the first stage"
        self.decoder, self.modules, self.cache = stage.decoder, modules, cache
        self._embedding, self._head = stage.embedding, head
        self._joined = stage.decoder.sharing.columns(stage.decoder.config.hidden_size, "embeddings")

    @classmethod
    def load(cls, loader: GpuLoader, stage: GpuStage, block_size: int) -> "GpuModules":
        """The head is read again only where `stage` lacks it."""
        config = loader.config
        count = loader.checkpoint.mtp_modules(config)
        modules = [loader.module(config.num_hidden_layers + number) for number in range(count)]
        cache = Cache(count, stage.decoder.width, block_size, loader.dtype, loader.device)
        return cls(stage, modules, cache, stage.head if stage.head is not None else loader.head())

    @property
    def count(self) -> int:
        return len(self.modules)

    @property
    def cache_bytes_per_block(self) -> int:
        return self.cache.bytes_per_block

    def allocate_cache(self, num_blocks: int) -> None:
        self.cache.allocate(num_blocks)

    @torch.inference_mode()
    def run(self, rows: Rows, hidden: Tensor, module: int = 0, wanted: IntArray | None = None) -> Tensor:
        """As MtpModules.run: states after `shared_head.norm` [W, hidden] of the wanted rows."""
        if not len(rows):
            return hidden
        if module:
            rows = replace(rows, rope_positions=rows.rope_positions - module, first_slots=rows.first_slots + module)
        batch = self.decoder.batch(rows, wanted)
        states = self.forward(batch, hidden, module)
        return states if batch.wanted is None else states.index_select(0, batch.wanted)

    @torch.inference_mode()
    def forward(self, batch: GpuBatch, hidden: Tensor, module: int = 0) -> Tensor:
        """The states of all rows. `hidden` [R, hidden] is what the module before has one slot before."""
        own, decoder, eps = self.modules[module], self.decoder, self.decoder.config.rms_norm_eps
        embedded = decoder.embed(batch.token_ids, self._embedding)
        pairs = pair_norms(embedded, hidden, own.embedding_norm, own.hidden_norm, eps)
        stream = self._joined(own.join(pairs))
        normed = norm(stream, own.layer.input_norm, eps)
        stream, outputs, weights = decoder.layer(own.layer, batch, stream, normed, self.cache.layers[module])
        return decoder.join(stream, outputs, weights, own.norm)[1]

    @torch.inference_mode()
    def logits(self, state: Tensor) -> Tensor:
        """Logits of the token after a module's own, from what `run` returned: [n, own vocabulary] in float32."""
        return self._head(state, wide=True)
