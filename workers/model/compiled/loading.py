"""Loads a rank's parts of a model for the compiled kernels, from the checkpoint or from a cache of packed weights."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import pointer
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from outrider.kernels.cpu import library
from outrider.kernels.cpu.context import ExchangeError
from outrider.kernels.cpu.library import ROUNDED, LinearStruct
from outrider.kernels.cpu.packed_file import MappedWeights
from outrider.kernels.cpu.packing import Packer, PrivateWeights, kind_of
from outrider.workers.model.compiled.experts import CompiledExperts
from outrider.workers.model.compiled.weight_cache import WeightCache
from outrider.workers.model.compiled.weights import WeightReader
from outrider.workers.model.layers import LATENT_NORM_EPS
from outrider.workers.model.loading import Progress
from outrider.workers.model.rotary import rotary_table
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel.collectives.native_group import NativeGroup
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.types.model.model_config import ModelConfig

# Purposes exchanged between all ranks of a stage; all others are exchanged between those of a tensor group.
_OF_STAGE = {library.PURPOSES.index(each) for each in ("counts of rows", "rows to experts", "expert outputs")}
Made = TypeVar("Made")
Kept = TypeVar("Kept")


class Explaining:
    """Wraps a call of the kernels: turns a failed exchange into an ExchangeBrokenError that names the rank."""

    def __init__(self, tensor: NativeGroup, stage: NativeGroup) -> None:
        self._tensor, self._stage = tensor, stage

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ExchangeError):
            group = self._stage if error.purpose in _OF_STAGE else self._tensor
            raise group.explain(error) from error


class CompiledLoader:
    """Reads `checkpoint` into the kernels' structures. The memory that they point to lives as long as the loader."""

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        quantization: str | None,
        draft_quantization: str | None = None,
        block_size: int,
        fast: bool = False,
        sharing: Sharing | None = None,
        cache: WeightCache | None = None,
    ) -> None:
        """`sharing`: this rank reads only its own slices. `cache` is this checkpoint's.

        `draft_quantization` applies to the MTP modules and their head; None: as the model. "int8" also rounds those
        products' inputs. Drafts are verified, so the text does not change.
        """
        self.config, self.dtype = config, dtype
        self.sharing = sharing or Sharing()
        self.shard = self.sharing.shard
        self.groups = tuple(map(NativeGroup, (self.sharing.tensor, self.sharing.stage)))
        self.explaining = Explaining(*self.groups)
        self._fast = fast
        self._checkpoint = checkpoint
        self._kind = kind_of(dtype, quantization)
        self._draft_kind = ROUNDED if draft_quantization == "int8" else self._kind
        self._private, self._cache = PrivateWeights(), cache
        self._kept: list[object] = []
        self._spread: dict[int, CompiledExperts] = {}  # by layer
        self._mapped: dict[int, MappedWeights] = {}  # whole experts, by address
        self.shape = self._shape(block_size)

    @property
    def mtp_modules(self) -> int:
        """The number of MTP modules in the checkpoint."""
        return self._checkpoint.mtp_modules(self.config)

    def layers(self, numbers: Sequence[int], progress: Progress | None = None) -> list[library.Layer]:
        """Reads with several threads; calls `progress` after each layer."""
        layers = []
        with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="outrider-loading") as pool:
            for layer in pool.map(self.layer, numbers):
                layers.append(layer)
                if progress is not None:
                    progress(len(layers), len(numbers))
        return layers

    def layer(self, number: int) -> library.Layer:
        layer = self._part(f"layer-{number}", self._tensor, lambda read: read.layer(number), self._kind_of(number))
        if self.config.is_moe_layer(number):
            layer.routed = pointer(self._keep(self._routed(number)))
        return layer

    def _routed(self, number: int) -> library.RoutedExperts:
        """A slice of each routed expert, or this rank's whole experts."""
        count = self.config.n_routed_experts
        if not self.shard.spread:
            kind = self._kind_of(number)
            slots = self._part(f"experts-{number}", self._tensor, lambda read: read.experts(number), kind)
            return library.RoutedExperts(slots=slots, count=count)
        width, load = self.config.moe_intermediate_size, partial(self._expert, number)
        spread = CompiledExperts(number, self.shard, count, width, load, self._free)
        self._spread[number] = spread
        return spread.structure

    def _expert(self, number: int, expert: int) -> library.MlpStruct:
        """A whole expert, in its own private or mapped memory."""

        def make(read: WeightReader) -> library.MlpStruct:
            return read.expert(number, expert)

        kind = self._kind_of(number)
        packer = self._packer(f"expert-{number}-{expert}", (), make, kind)
        mlp = make(self._reader(packer or self._private, kind))
        if packer is not None:
            self._mapped[mlp.down.panels] = packer
        return mlp

    def _free(self, mlp: library.MlpStruct) -> None:
        if self._mapped.pop(mlp.down.panels, None) is None:
            for linear in (mlp.gate_up, mlp.down):
                self._private.give_back(linear)

    @property
    def expert_layers(self) -> list[CompiledExperts]:
        """The layers with spread experts loaded so far, ascending."""
        return [self._spread[number] for number in sorted(self._spread)]

    def module(self, number: int) -> library.Module:
        """An MTP module without its decoder layer and without what it shares with the model."""
        return self._part(f"module-{number}", self._tensor, lambda read: read.module(number), self._kind_of(number))

    def embedding(self) -> tuple[int, int]:
        """Address and weight kind of the embedding [vocab, own columns of hidden]."""
        return self._part("embedding", self._tensor, WeightReader.embedding, self._kind), kind_of(self.dtype)

    def norm(self) -> int:
        """The address of the norm after the last layer."""
        return self._reader(self._private, self._kind).vector("norm.weight", self.config.hidden_size)

    def head(self) -> LinearStruct:
        """This rank's slice of the vocabulary."""
        return self._part("head", self._tensor, WeightReader.head, self._kind)

    def draft_head(self, ids: NDArray[np.int32] | None) -> LinearStruct:
        """This rank's slice of a draft head for the tokens `ids`; None: all tokens."""
        if ids is None:
            return self._part("draft-head", self._tensor, WeightReader.head, self._draft_kind)
        split = *self._tensor, ids.tolist()
        return self._part("cut-head", split, lambda read: read.cut_head(ids), self._draft_kind)

    @property
    def drafts_with_the_head(self) -> bool:
        """Whether a full draft head would equal the model's head, so that it can be shared."""
        return self._draft_kind == self._kind

    def _kind_of(self, number: int) -> int:
        """The kind of a layer's weights. MTP modules are numbered after the model's layers."""
        return self._kind if number < self.config.num_hidden_layers else self._draft_kind

    @property
    def _tensor(self) -> tuple[object, ...]:
        """This rank's slice of everything split over the tensor group."""
        return self.shard.tensor, self.shard.tensors, self.shard.unit

    def _part(self, name: str, split: tuple[object, ...], make: Callable[[WeightReader], Made], kind: int) -> Made:
        """What `make` reads, packed as `kind`; kept as long as this loader."""
        packer = self._keep(self._packer(name, split, make, kind))
        return make(self._reader(packer or self._private, kind))

    def _packer(
        self, name: str, split: tuple[object, ...], make: Callable[[WeightReader], object], kind: int
    ) -> MappedWeights | None:
        """The cache's packed weights for `make`, created first if needed; None without a cache."""
        if self._cache is None:
            return None
        how = (self.dtype, kind, self._fast, *split)
        return self._cache.packer(name, how, lambda packer: make(self._reader(packer, kind)))

    def _reader(self, packer: Packer, kind: int) -> WeightReader:
        return WeightReader(
            config=self.config,
            checkpoint=self._checkpoint,
            shard=self.shard,
            dtype=self.dtype,
            kind=kind,
            fast=self._fast,
            packer=packer,
            kept=self._kept,
        )

    def _shape(self, block_size: int) -> library.ShapeStruct:
        config = self.config
        return library.ShapeStruct(
            hidden=config.hidden_size,
            heads=config.num_attention_heads // self.shard.tensors,
            nope=config.qk_nope_head_dim,
            rope=config.qk_rope_head_dim,
            value=config.v_head_dim,
            latent_rank=config.kv_lora_rank,
            query_rank=config.q_lora_rank or 0,
            experts=config.n_routed_experts,
            chosen=config.num_experts_per_tok if config.n_routed_experts else 0,
            groups=config.n_group,
            chosen_groups=min(config.topk_group, config.n_group),
            normalise=config.norm_topk_prob,
            block_size=block_size,
            cache_kind=kind_of(self.dtype),
            fast=self._fast,
            by_head=config.caches_heads,
            routed_scale=config.routed_scaling_factor,
            eps=config.rms_norm_eps,
            latent_eps=LATENT_NORM_EPS,
            softmax_scale=config.softmax_scale,
            rotary=self._keep(torch.from_numpy(rotary_table(config))).data_ptr(),
            shard=None if self.shard.whole else pointer(self._keep(self._structure())),
        )

    def _structure(self) -> library.ShardStruct:
        tensor, stage = self.groups
        return library.ShardStruct(
            tensor=tensor.structure,
            stage=stage.structure,
            unit=self.shard.unit,
            spread=self.shard.spread,
            heads=self.config.num_attention_heads,
        )

    def _keep(self, value: Kept) -> Kept:
        self._kept.append(value)
        return value
