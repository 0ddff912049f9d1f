"""Runs decoder layers on a GPU, a rank's share of them. Stages (stage.py) and MTP modules use the same Decoder.

A layer is the same few kernels for any number of rows and any context length: latents, queries, attention, output
projection, routing, experts. Each norm runs in one kernel with the residual add before it. The maths is
model/deepseek.py's; sums are added in the order that kernels/gpu fixes, so a row's bits do not depend on its batch.
In a tensor group each rank has its own heads, and either a slice of every expert or whole experts; partial outputs are
summed over the ranks. Experts that are spread over data groups get rows of all groups (parallel/expert_dispatch.py).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from outrider.kernels.gpu.choose import choose
from outrider.kernels.gpu.dispatch import MOST_ROWS
from outrider.kernels.gpu.latents import latents
from outrider.kernels.gpu.mla import mla
from outrider.kernels.gpu.norms import join_norm, weigh
from outrider.kernels.gpu.queries import queries
from outrider.kernels.gpu.reduce import sum_join_norm
from outrider.kernels.gpu.slots import slot_shape
from outrider.kernels.gpu.values import values
from outrider.workers.model.cache import Cache
from outrider.workers.model.gpu.batch import SIZES, GpuBatch, LaunchRows, batches_of
from outrider.workers.model.gpu.upload import Upload
from outrider.workers.model.gpu.weights import GpuAttention, GpuLayer, GpuMoe
from outrider.workers.model.layers import LATENT_NORM_EPS
from outrider.workers.model.rows import IntArray, Rows
from outrider.workers.parallel.deep_ep import expert_dispatch
from outrider.workers.parallel.peer_dispatch import PeerDispatch
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.types.model.model_config import ModelConfig

_MIN_SIZE = 16  # the smallest side of a tensor core product


def shape_obstacle(config: ModelConfig) -> str | None:
    """Why kernels/gpu cannot run a model of this shape, or None if it can."""
    sizes = {
        name: getattr(config, name) for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    }
    for name, size in sizes.items():
        if size < _MIN_SIZE or size & (size - 1):
            return f"{name} = {size} is not a power of two of at least {_MIN_SIZE}"
    return None


class Decoder:
    """Runs one layer at a time, over a GpuBatch."""

    def __init__(
        self,
        config: ModelConfig,
        sharing: Sharing,
        table: Tensor,
        block_size: int,
        dtype: torch.dtype,
        fp8_cache: bool = False,
    ) -> None:
        self.peers = sharing.peers
        self.config, self.sharing, self.table = config, sharing, table
        self.block_size, self.dtype, self.device, self._fp8_cache = block_size, dtype, table.device, fp8_cache
        self.upload = Upload(table.device)
        heads = sharing.shard.heads(config.num_attention_heads)
        self._row_bytes = 4 * (heads.stop - heads.start) * config.kv_lora_rank
        self._sums = sharing.sum("layer outputs") if sharing.tensor.size > 1 else None
        self._embedded = sharing.columns(config.hidden_size, "embeddings")
        self._dense = _DenseRoute(table.device)
        shard, slots = sharing.shard, config.n_routed_experts + sharing.shard.redundant
        self._dispatch = self._small_dispatch = None
        if shard.spread and shard.datas > 1:
            self._dispatch = expert_dispatch(sharing, config.hidden_size, slots)
            if sharing.dispatch_areas is not None:
                self._small_dispatch = PeerDispatch(sharing, sharing.dispatch_areas, config.hidden_size, slots)

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can capture layers and embedding: no NCCL collective between their kernels."""
        dispatches = self._dispatch is None or self._small_dispatch is not None
        return torch.version.cuda is not None and self._embedded.capturable and dispatches

    @property
    def shares_rows(self) -> bool:
        """Whether rows are sent to experts of other data groups."""
        return self._dispatch is not None

    def fixed_sizes(self, rows: Rows) -> bool:
        """Whether no exchange between data groups depends on how many rows each of them has."""
        return not self.shares_rows or (self._small_dispatch is not None and 0 < (rows.most_rows or 0) <= MOST_ROWS)

    def cache(self, layers: int) -> Cache:
        """The KV cache of so many layers, not yet allocated."""
        config = self.config
        width, dtype = slot_shape(config.kv_lora_rank, config.qk_rope_head_dim, self.dtype, self._fp8_cache)
        return Cache(layers, width, self.block_size, dtype, self.device)

    def batch(self, rows: Rows, wanted: IntArray | None = None) -> GpuBatch:
        return self.batches([rows], [wanted])[0]

    def batches(self, rounds: Sequence[Rows], wanted: Sequence[IntArray | None]) -> list[GpuBatch]:
        """One batch per round; all of them reach the device in one copy."""
        return batches_of(rounds, self.block_size, self.upload, self._row_bytes, wanted)

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        """[R] -> [R, hidden]."""
        return self._embedded(functional.embedding(token_ids, table))

    def join(self, hidden: Tensor, outputs: Tensor, weights: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream plus `outputs`, summed over the ranks; and the norm of the result."""
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
        """The stream after attention; and the MLP's outputs [R * places, hidden] and weights, not yet added to it."""
        hidden, normed = self.join(hidden, self._attend(layer.attention, batch, normed, cache), None, layer.post_norm)
        if isinstance(layer.mlp, GpuMoe):
            return hidden, *self._moe(layer.mlp, batch, normed)
        return hidden, layer.mlp(normed, self._dense.ids(len(normed)), whole=True), None

    def serve_others(self, layer: GpuLayer, batch: GpuBatch, hidden: Tensor) -> None:
        """Runs this rank's experts for other data groups. `batch` and `hidden` have no rows."""
        if self._dispatch is not None and isinstance(layer.mlp, GpuMoe):
            self._moe(layer.mlp, batch, hidden)

    def _attend(self, own: GpuAttention, batch: GpuBatch, normed: Tensor, cache: Tensor) -> Tensor:
        """[R, hidden]: the partial output of this rank's heads."""
        low = own.down(normed)
        query = latents(
            low, own.query_norm, own.latent_norm, self.table, batch.positions, batch.slots, cache, LATENT_NORM_EPS
        )
        if own.query_up is not None:
            query = own.query_up(query)
        query = queries(query, own.key_up, self.table, batch.positions)
        made = [self._attend_piece(own, batch, query, cache, piece) for piece in batch.pieces]
        return own.output(made[0] if len(made) == 1 else torch.cat(made))

    def _attend_piece(
        self, own: GpuAttention, batch: GpuBatch, query: Tensor, cache: Tensor, piece: LaunchRows
    ) -> Tensor:
        config, seen = self.config, batch.seen[piece.rows]
        parts, logs = mla(
            query[piece.rows], cache, batch.tiles[piece.tiles], batch.pages, seen, self.block_size,
            config.kv_lora_rank, config.softmax_scale, batch.splits,
        )  # fmt: skip
        out: Tensor = values(parts, logs, seen, own.value_up)
        return out

    def _moe(self, own: GpuMoe, batch: GpuBatch, x: Tensor) -> tuple[Tensor, Tensor | None]:
        config = self.config
        logits = own.router(x if own.router.values.dtype == x.dtype else x.float(), wide=True)
        ids, weights = choose(
            logits, own.bias, config.num_experts_per_tok, config.n_group, min(config.topk_group, config.n_group),
            config.norm_topk_prob, config.routed_scaling_factor, config.n_shared_experts,
        )  # fmt: skip
        if not self.sharing.shard.spread:
            return own.experts(x, ids, whole=True), weights
        shared = None
        if own.shared is not None:
            shared = own.shared(x, ids[:, config.num_experts_per_tok :] - own.shared.first, whole=True)
        routed = self._spread(own, batch, x, ids[:, : config.num_experts_per_tok])
        return self._with_shared(routed, shared, weights)

    def _spread(self, own: GpuMoe, batch: GpuBatch, x: Tensor, ids: Tensor) -> Tensor:
        """The outputs of experts that are spread over ranks: [R, k, own columns].

        If all ranks have all rows, [R, k, hidden] with zeros for other ranks' experts.
        """
        moving, first = own.moving, own.experts.first
        slots = ids if moving is None else moving.layer.route(ids, batch.positions, batch.seen[:, 1] > 0)

        def run(rows: Tensor, slots: Tensor, whole: bool = True) -> Tensor:
            return own.experts(rows, slots - first if moving is None else moving.places(slots), whole=whole)

        if self._dispatch is None:
            return run(x, slots, whole=False).view(*ids.shape, x.shape[1])
        if self._small_dispatch is not None and 0 < batch.most_rows <= MOST_ROWS:
            return self._small_dispatch(x, slots, batch.seen, batch.most_rows, run)
        return self._dispatch(x, slots, lambda rows, slots: run(rows, slots.unsqueeze(1)))

    def _with_shared(self, routed: Tensor, shared: Tensor | None, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """Outputs and weights as `layer` returns them. `shared` [R * experts, hidden]: outputs of shared experts.

        In a tensor group both are summands: this rank's columns, or its experts' outputs; and its share of the shared
        experts.
        """
        rows, places, columns = routed.shape
        if self.sharing.tensor.size == 1:
            parts = [routed] if shared is None else [routed, shared.view(rows, weights.shape[1] - places, columns)]
            return torch.cat(parts, dim=1).flatten(0, 1), weights
        total = routed.new_zeros(rows, self.config.hidden_size)
        if shared is not None:
            total = weigh(shared, weights[:, places:].contiguous())
        own = slice(None) if self._dispatch is None else self.sharing.shard.own(self.config.hidden_size)
        total[:, own].add_(weigh(routed.flatten(0, 1), weights[:, :places].contiguous()))
        return total, None


class _DenseRoute:
    """Expert ids of a dense layer, which runs as one expert: zeros."""

    def __init__(self, device: torch.device) -> None:
        self._few = self._many = torch.zeros(SIZES[-1], 1, dtype=torch.int32, device=device)

    def ids(self, rows: int) -> Tensor:
        """Of few rows always the same tensor, since CUDA graphs keep its address."""
        if rows > len(self._many):
            self._many = torch.zeros(rows, 1, dtype=torch.int32, device=self._many.device)
        return (self._few if rows <= len(self._few) else self._many)[:rows]
