"""A stage and its MTP modules on the compiled kernels: the same model as deepseek.py and mtp.py.

Those are the specification. Here weights are packed once, and one call runs a round through all layers. The results
have the same bits for any rows, chunks, blocks and threads.
"""

from collections.abc import Iterator, Sequence
from ctypes import c_void_p, pointer

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outrider.kernels.cpu import library
from outrider.kernels.cpu.context import Allowing, Context, DraftHead, uninitialised
from outrider.workers.model.cache import zeros_when_touched
from outrider.workers.model.compiled.loading import CompiledLoader
from outrider.workers.model.loading import Progress
from outrider.workers.model.rows import Chain, IntArray, Rows
from outrider.workers.types.errors import CheckpointError

_CACHE_DTYPES = {library.FLOAT32: torch.float32, library.BFLOAT16: torch.bfloat16}


class CompiledCache:
    """The KV cache of some layers; a slot is padded with zeros to whole vectors."""

    def __init__(self, layers: int, width: int, shape: library.ShapeStruct) -> None:
        self._layers, self._block_size = layers, int(shape.block_size)
        self._width = int(-(-width // library.LANES) * library.LANES)
        self._dtype = _CACHE_DTYPES[shape.cache_kind]
        self._tensors: list[Tensor] = []

    @property
    def bytes_per_block(self) -> int:
        return self._layers * self._block_size * self._width * self._dtype.itemsize

    def allocate(self, num_blocks: int) -> None:
        """Allocates blocks 0..num_blocks-1. All values are finite from the start."""
        slots = num_blocks * self._block_size
        device = torch.device("cpu")
        self._tensors = [zeros_when_touched(slots, self._width, self._dtype, device) for _ in range(self._layers)]

    @property
    def addresses(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self._tensors]


class CompiledStage:
    """Layers `layers` of a model, and their cache. The first stage also embeds; the last has norm and head."""

    def __init__(
        self, context: Context, loader: CompiledLoader, layers: range, progress: Progress | None = None
    ) -> None:
        config = loader.config
        self.context, self._loader = context, loader
        self._second: Context | None = None
        self._layers = (library.Layer * len(layers))(*loader.layers(layers, progress))
        last = layers.stop == config.num_hidden_layers
        self.embedding = loader.embedding() if layers.start == 0 else None
        self.head = loader.head() if last else None
        self._norm = loader.norm() if last else None
        self.cache = CompiledCache(len(layers), config.cache_width(loader.shape.heads), loader.shape)

    @property
    def cache_bytes_per_block(self) -> int:
        return self.cache.bytes_per_block

    def allocate_cache(self, num_blocks: int) -> None:
        """Allocates blocks 0..num_blocks-1. Call once, before the first round."""
        self.cache.allocate(num_blocks)
        self._caches = (c_void_p * len(self._layers))(*self.cache.addresses)
        address, kind = self.embedding or (None, 0)
        self._stage = library.StageStruct(
            layers=self._layers,
            caches=self._caches,
            count=len(self._layers),
            embedding=address,
            embedding_kind=kind,
            norm=self._norm,
        )

    def run(self, rows: Rows, hidden: Tensor | None, lane: int = 0) -> Tensor:
        """`hidden` [R, hidden] float32, or None on the first stage -> [R, hidden]; normed on the last stage."""
        width = self._loader.config.hidden_size
        out = uninitialised(len(rows), width) if hidden is None else hidden.clone()
        if len(rows) or self._loader.shard.spread:  # other ranks' rows may need this rank's experts
            with self._loader.explaining:
                self._team_of(lane).stage(self._loader.shape, self._stage, _structure(rows), out)
        return out

    def _team_of(self, lane: int) -> Context:
        """The lane's thread team. The second lane's is created at its first use."""
        if lane and self._second is None:
            self._second = self.context.twin()
        return self._second if lane and self._second is not None else self.context


class CompiledModules:
    """A model's MTP modules, each with its cache layer, beside the model's first stage.

    `head_ids`: the tokens that they may draft, ascending; None: all. Fewer are cheaper and only lose drafts.
    """

    def __init__(self, stage: CompiledStage, loader: CompiledLoader, head_ids: NDArray[np.int32] | None) -> None:
        if stage.embedding is None:
            raise CheckpointError("MTP modules are on the first stage")
        self._context, self._loader = stage.context, loader
        self._head = self._make_head(stage, head_ids)
        first = loader.config.num_hidden_layers
        modules = [self._load(number, *stage.embedding) for number in range(first, first + loader.mtp_modules)]
        self._modules = (library.Module * len(modules))(*modules)
        self.cache = CompiledCache(self.count, loader.config.cache_width(loader.shape.heads), loader.shape)

    @property
    def count(self) -> int:
        return len(self._modules)

    def _load(self, number: int, embedding: int, embedding_kind: int) -> library.Module:
        module = self._loader.module(number)
        module.layer = pointer(self._loader.layer(number))
        module.embedding, module.embedding_kind = embedding, embedding_kind
        return module

    def _make_head(self, stage: CompiledStage, ids: NDArray[np.int32] | None) -> DraftHead:
        if ids is not None:
            return DraftHead(self._loader.draft_head(ids), len(ids), ids)
        own = stage.head if self._loader.drafts_with_the_head else None
        return DraftHead(own or self._loader.draft_head(None), self._loader.config.vocab_size, None)

    @property
    def cache_bytes_per_block(self) -> int:
        return self.cache.bytes_per_block

    def allocate_cache(self, num_blocks: int) -> None:
        self.cache.allocate(num_blocks)
        self._use_cache()

    def share_cache(self, other: "CompiledModules") -> None:
        """Uses the cache of `other` instead of its own. It must have as many modules, for the same stage."""
        self.cache = other.cache
        self._use_cache()

    def _use_cache(self) -> None:
        for module, address in zip(self._modules, self.cache.addresses, strict=True):
            module.cache = address

    def draft(
        self,
        pairs: Rows,
        hidden: Tensor,
        last_pairs: IntArray,
        depths: IntArray,
        draws: NDArray[np.void],
        allowed: Allowing | None = None,
        steps: int | None = None,
        chain: Chain | None = None,
        stop_rules: NDArray[np.float64] | None = None,
    ) -> tuple[IntArray, NDArray[np.float64], IntArray]:
        """Processes `pairs` (h_i, t_{i+1}), `hidden` [pairs, hidden] being their h_i; then drafts.

        `chain` gives the inputs of modules after the first. Up to `depths[n]` drafts follow pair `last_pairs[n]`.
        `draws[n]` are the sampling parameters of its first draft. `allowed(n, j)` is the mask of its draft j from 1
        on, if a grammar constrains it. `stop_rules` [n, 7] may end a sequence's drafting early. `steps` is the largest
        depth of all data groups.

        Returns the drafts sequence by sequence [sum(depths)], each one's lead over the next best score, and the number
        of drafts of each sequence. Of ranks with the same pairs, only the first gets the leads.
        """
        most = int(depths.max(initial=0)) if steps is None else steps
        with self._loader.explaining:
            return self._context.draft(
                self._loader.shape, self._modules, self._head, _structure(pairs), hidden.contiguous(), last_pairs,
                depths, most, draws, allowed, None if chain is None else _chain_structure(chain), stop_rules,
            )  # fmt: skip


def _structure(rows: Rows) -> library.RowsStruct:
    """Valid while the returned object exists: it holds a copy of the arrays."""
    arrays = (
        rows.token_ids, rows.rope_positions, rows.cache_positions, rows.query_offsets, rows.write_from,
        rows.block_offsets, rows.block_ids, rows.first_slots,
    )  # fmt: skip
    flat = np.concatenate(arrays)
    address = flat.__array_interface__["data"][0]
    structure = library.RowsStruct(len(rows.token_ids), len(rows.write_from), *_addresses(address, arrays))
    structure.memory = flat
    return structure


def _addresses(address: int, arrays: Sequence[IntArray]) -> Iterator[int]:
    """The addresses of arrays that are stored one after another from `address` on."""
    for array in arrays:
        yield address
        address += array.nbytes


def _chain_structure(chain: Chain) -> library.ChainStruct:
    """Valid while `chain` exists."""
    return library.ChainStruct(
        before=chain.before.ctypes.data,
        reach=chain.reach.ctypes.data,
        kept=chain.kept.data_ptr(),
        lasts=chain.lasts.ctypes.data,
        leaves=chain.leaves.data_ptr(),
        leaving=len(chain.lasts),
    )
