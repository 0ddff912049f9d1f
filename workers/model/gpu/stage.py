"""A stage of the model on a GPU, and the MTP modules beside the first one. Layers run in decoder.py."""

from dataclasses import replace

import torch
from torch import Tensor

from outrider.kernels.gpu.norms import norm, pair_norms
from outrider.workers.model.cache import Cache
from outrider.workers.model.gpu.batch import GpuBatch
from outrider.workers.model.gpu.decoder import Decoder
from outrider.workers.model.gpu.graphs import Graphs
from outrider.workers.model.gpu.stack import Weight
from outrider.workers.model.gpu.weights import GpuLayer, GpuLoader, GpuModule
from outrider.workers.model.loading import Progress
from outrider.workers.model.rotary import rotary_table
from outrider.workers.model.rows import IntArray, Rows
from outrider.workers.parallel.sharing import Sharing


class GpuStage:
    """Layers of a model and their cache. Implements StageModel.

    The first stage has `embedding` (this rank's columns), the last stage `norm` and `head`; elsewhere they are None.
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
        """`in_graphs`: small rounds run as CUDA graphs, if the layers can be captured."""
        self.in_graphs = in_graphs and decoder.capturable
        self.decoder, self.layers, self.cache = decoder, layers, cache
        self.embedding, self.norm, self.head = embedding, norm, head
        self.upload = decoder.upload
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
        fp8_cache: bool = False,
    ) -> "GpuStage":
        """Reads the layers, and the embedding or the head the stage needs. Calls `progress` after each layer."""
        config, last = loader.config, layers.stop == loader.config.num_hidden_layers
        read = []
        for number in layers:
            read.append(loader.layer(number))
            progress(len(read), len(layers))
        table = torch.from_numpy(rotary_table(config)).to(loader.device)
        decoder = Decoder(config, sharing, table, block_size, loader.dtype, fp8_cache)
        return cls(
            decoder,
            read,
            decoder.cache(len(layers)),
            embedding=loader.embedding() if layers.start == 0 else None,
            norm=loader.tensor("model.norm.weight", config.hidden_size) if last else None,
            head=loader.head() if last else None,
            in_graphs=in_graphs,
        )

    @property
    def cache_bytes_per_block(self) -> int:
        return self.cache.bytes_per_block

    def allocate_cache(self, num_blocks: int) -> None:
        """Allocates blocks 0..num_blocks-1. Call once, before the first round."""
        self.cache.allocate(num_blocks)
        if self.in_graphs:
            self.use_graphs()

    def use_graphs(self) -> None:
        """Runs small rounds as CUDA graphs from now on. Call after `allocate_cache`."""
        decoder = self.decoder
        hidden_size = decoder.config.hidden_size if self.embedding is None else None
        self._graphs = Graphs(
            self._embed_and_run, decoder.block_size, hidden_size, decoder.dtype, decoder.device, self.upload
        )

    @torch.inference_mode()
    def run(self, rows: Rows, hidden: Tensor | None, lane: int = 0) -> Tensor:
        """`hidden` [R, hidden], or None on the first stage, which embeds -> [R, hidden]; normed on the last stage."""
        if self._graphs is None or not self.decoder.fixed_sizes(rows) or not self._graphs.fits(rows):
            return self._embed_and_run(self.decoder.batch(rows), hidden)
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
            for layer in self.layers:
                self.decoder.serve_others(layer, batch, hidden)
            return hidden
        decoder, following = self.decoder, [layer.input_norm for layer in self.layers[1:]]
        normed = norm(hidden, self.layers[0].input_norm, decoder.config.rms_norm_eps)
        # A stage without a norm does not use its last normed value: any weight will do.
        last = self.norm if self.norm is not None else self.layers[0].input_norm
        for layer, cache, after in zip(self.layers, self.cache.layers, [*following, last], strict=True):
            hidden, outputs, weights = decoder.layer(layer, batch, hidden, normed, cache)
            hidden, normed = decoder.join(hidden, outputs, weights, after)
        return hidden if self.norm is None else normed

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """`hidden` [n, hidden] after the final norm -> [n, own vocabulary] float32. Last stage only."""
        assert self.head is not None, "only the last stage has the head"
        return self.head(hidden, wide=True)


class GpuModules:
    """A model's MTP modules (model/mtp.py), each with its cache layer, beside the first stage."""

    def __init__(self, stage: GpuStage, modules: list[GpuModule], cache: Cache, head: Weight) -> None:
        assert stage.embedding is not None, "MTP modules are on the first stage"
        self.decoder, self.modules, self.cache = stage.decoder, modules, cache
        self._embedding, self._head = stage.embedding, head
        self.in_graphs = stage.in_graphs
        self._joined = stage.decoder.sharing.columns(stage.decoder.config.hidden_size, "embeddings")

    @classmethod
    def load(cls, loader: GpuLoader, stage: GpuStage) -> "GpuModules":
        """Shares the stage's head, and reads one only if `stage` has none."""
        config = loader.config
        count = loader.checkpoint.mtp_modules(config)
        modules = [loader.module(config.num_hidden_layers + number) for number in range(count)]
        cache = stage.decoder.cache(count)
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
        if module:
            rows = replace(rows, rope_positions=rows.rope_positions - module, first_slots=rows.first_slots + module)
        return self.forward(self.decoder.batch(rows, wanted), hidden, module)

    @torch.inference_mode()
    def forward(self, batch: GpuBatch, hidden: Tensor, module: int = 0) -> Tensor:
        """The wanted rows' states. `hidden` [R, hidden]: the previous module's states, of one position earlier."""
        own, decoder, eps = self.modules[module], self.decoder, self.decoder.config.rms_norm_eps
        if not batch.rows:
            decoder.serve_others(own.layer, batch, hidden)
            return hidden
        embedded = decoder.embed(batch.token_ids, self._embedding)
        pairs = pair_norms(embedded, hidden, own.embedding_norm, own.hidden_norm, eps)
        stream = self._joined(own.join(pairs))
        normed = norm(stream, own.layer.input_norm, eps)
        stream, outputs, weights = decoder.layer(own.layer, batch, stream, normed, self.cache.layers[module])
        states = decoder.join(stream, outputs, weights, own.norm)[1]
        return states if batch.wanted is None else states.index_select(0, batch.wanted)

    @torch.inference_mode()
    def logits(self, state: Tensor) -> Tensor:
        """Logits of the next token, from states that `run` returned: [n, own vocabulary] float32."""
        return self._head(state, wide=True)
