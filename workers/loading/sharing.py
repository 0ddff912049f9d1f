"""Determines a rank's groups and its share of every layer. Collective: every rank calls it."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from outrider.workers.config import EngineConfig
from outrider.workers.experts.nodes import expert_layout, nodes_of_stages
from outrider.workers.experts.placing import ExpertLayout
from outrider.workers.parallel import groups
from outrider.workers.parallel.collectives.collectives import Collectives
from outrider.workers.parallel.collectives.group_collectives import GroupCollectives
from outrider.workers.parallel.collectives.group_rendezvous import connect_groups
from outrider.workers.parallel.collectives.peer_memory import open_areas, open_peer_memory
from outrider.workers.parallel.deep_ep import find_deep_ep, open_buffer
from outrider.workers.parallel.links.rendezvous import this_machine
from outrider.workers.parallel.peer_dispatch import dispatch_areas
from outrider.workers.parallel.shard import Shard
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.parallel.watchdog import Watchdog
from outrider.workers.types.model.model_config import ModelConfig

if TYPE_CHECKING:
    from outrider.workers.loading.rank_spec import RankSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreedSharing:
    """The same decisions on all ranks. `layout`: of experts, with expert parallelism."""

    sharing: Sharing
    layout: ExpertLayout | None = None


def load_sharing(
    spec: "RankSpec",
    config: EngineConfig,
    model: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    watchdog: Watchdog | None,
) -> AgreedSharing:
    """Collective: every rank of the replica must call it. `watchdog`: on GPUs."""
    redundant = config.num_redundant_experts
    if spec.world_size == 1:
        return AgreedSharing(sharing=Sharing(shard=Shard.of(config, spec.rank, model, redundant)))
    layout = None
    if config.expert_parallel_size > 1:
        nodes = nodes_of_stages(groups.all_gather(this_machine()), spec.mesh.stage_size)
        layout = expert_layout(model, spec.mesh.stage_size, nodes, redundant)
    shard = Shard.of(config, spec.rank, model, redundant, layout.parts if layout is not None else 1)
    own_groups = connect_groups(
        spec.rank, spec.mesh, device, this_machine(), config.round_timeout_s, spec.describe, watchdog
    )
    sharing = Sharing.of(shard, own_groups, spec.mesh, spec.rank)
    if shard.spread:
        sharing = replace(sharing, deep_ep=_deep_ep(sharing.stage, model.hidden_size, device, dtype))
    if device.type == "cuda" and shard.tensors > 1:
        sharing = replace(sharing, peers=open_peer_memory(sharing.tensor, model.hidden_size, dtype, device))
    if device.type == "cuda" and shard.spread and shard.datas > 1:
        areas = dispatch_areas(shard, model.hidden_size, model.num_experts_per_tok, dtype)
        sharing = replace(sharing, dispatch_areas=open_areas(sharing.stage, areas, device, "rows to experts"))
    return AgreedSharing(sharing=sharing, layout=layout)


def _deep_ep(stage: Collectives, hidden_size: int, device: torch.device, dtype: torch.dtype) -> Any | None:
    """DeepEP's buffer if every rank has DeepEP, on GPUs with bfloat16 rows. Collective."""
    if device.type != "cuda" or dtype != torch.bfloat16 or not isinstance(stage, GroupCollectives):
        return None
    module = find_deep_ep(stage.size)
    if not groups.all_reduce_min(int(module is not None)):
        return None
    return open_buffer(module, stage, 2 * hidden_size)
