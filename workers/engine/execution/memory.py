"""Computes how many cache blocks fit in a rank's memory. Pure, except for reading how much memory is free."""

import os
from pathlib import Path, PurePosixPath

import torch

from outrider.workers.config import EngineConfig
from outrider.workers.model.gpu.batch import PARTS_BYTES
from outrider.workers.parallel.shard import Shard
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model.model_config import ModelConfig
from outrider.workers.types.requests.sampling_params import MAX_DRAFT_TOKENS

_CPU_SHARE = 0.25  # of the memory free after loading the weights; the rest is for other ranks and programs
_CUDA_SHARE = 0.9  # of the memory that weights and the largest round leave free
_MOST_OF_MEAN = 4  # rows of a rank's spread experts in one layer, over the mean of all ranks
_CGROUPS = Path("/sys/fs/cgroup")


def blocks_for(config: EngineConfig, max_model_len: int, bytes_per_block: int, free_bytes: int) -> int:
    """Blocks that fit in `kv_cache_memory_bytes`, or by default in `free_bytes`; at most as many as could be used.

    Raises OutriderError if not even one block fits.
    """
    budget = config.kv_cache_memory_bytes if config.kv_cache_memory_bytes is not None else free_bytes
    usable = config.max_num_seqs * -(-max_model_len // config.block_size)
    blocks = min(budget // bytes_per_block, usable)
    if blocks < 1:
        raise OutriderError(
            f"kv_cache_memory_bytes={budget} holds no block of the cache: one takes {bytes_per_block} bytes here"
        )
    return blocks


def round_bytes(config: EngineConfig, model: ModelConfig, shard: Shard, value_bytes: int) -> int:
    """GPU memory of the largest round besides weights and cache: hidden states, queries, expert outputs, logits."""
    rows, places = config.max_num_batched_tokens, model.num_experts_per_tok + model.n_shared_experts
    heads = model.num_attention_heads // shard.tensors
    stream = rows * value_bytes * (6 * model.hidden_size + 2 * heads * model.head_dim_latent)
    pairs = rows * max(places, 1) * value_bytes * (model.hidden_size + max(model.moe_intermediate_size, 1))
    if shard.spread and shard.datas > 1:
        # Pairs of all data groups, for all ranks: the mean of a rank is its tensor group's pairs over their ranks.
        received = _MOST_OF_MEAN * pairs // shard.tensors
        pairs = max(pairs // shard.tensors, rows * value_bytes * model.hidden_size) + received
    sampled = config.max_num_seqs * (1 + MAX_DRAFT_TOKENS)
    logits = 2 * 4 * min(sampled, max(rows, config.max_num_seqs)) * model.vocab_size
    return stream + 2 * pairs + PARTS_BYTES + logits


def free_bytes(device: torch.device, round_bytes: int = 0) -> int:
    """The share of this device's free memory that the cache may take by default.

    `round_bytes`: GPU memory that rounds will need and that is not allocated yet.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] - round_bytes
        if free <= 0:
            raise OutriderError(
                f"no memory is left for the cache: a round of max_num_batched_tokens needs {round_bytes} bytes besides"
                f" the weights, and {free + round_bytes} are free; lower max_num_batched_tokens or use more GPUs"
            )
        return int(free * _CUDA_SHARE)
    here = available_bytes(_text(Path("/proc/meminfo")))
    machine = here if here is not None else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    left = [cgroup_left(folder) for folder in cgroup_folders(_text(Path("/proc/self/cgroup")), _CGROUPS)]
    return int(min([machine, *(bytes for bytes in left if bytes is not None)]) * _CPU_SHARE)


def available_bytes(meminfo: str) -> int | None:
    """MemAvailable of /proc/meminfo: memory that can be allocated without swapping, reclaimable caches included."""
    for line in meminfo.splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def cgroup_folders(membership: str, root: Path) -> list[Path]:
    """The folders of this process's control group and its parents (version 2), from /proc/self/cgroup."""
    own = [line.removeprefix("0::") for line in membership.splitlines() if line.startswith("0::")]
    inside = [PurePosixPath(path).relative_to("/") for path in own if path.startswith("/")]
    return [root / part for path in inside for part in (path, *path.parents)]


def cgroup_left(folder: Path) -> int | None:
    """Memory left in a control group: its limit minus its use, not counting reclaimable file pages.

    None if it has no limit.
    """
    limit, used = _text(folder / "memory.max").strip(), _text(folder / "memory.current").strip()
    if not limit.isdigit() or not used.isdigit():
        return None
    fields = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
    return max(int(limit) - int(used) + int(fields.get("inactive_file", 0)), 0)


def _text(path: Path) -> str:
    """The file's text; empty if the file cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
