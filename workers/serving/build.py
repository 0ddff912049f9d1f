"""Builds what a rank runs: layers, cache, and role (leader or follower). The only file that imports all parts."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from outrider.workers.config import resolve_model
from outrider.workers.depth.policy import DepthPolicy
from outrider.workers.drafting.broadcasting_drafter import BroadcastingDrafter
from outrider.workers.drafting.drafter import Drafter
from outrider.workers.drafting.shared_drafts import SharedDrafts
from outrider.workers.engine.engine import Engine
from outrider.workers.engine.execution.lanes import Lanes
from outrider.workers.engine.execution.live_experts import LiveExperts
from outrider.workers.engine.execution.memory import blocks_for, free_bytes, round_bytes
from outrider.workers.engine.execution.pipeline import FirstStage, Pipeline, SingleStage
from outrider.workers.engine.execution.runner import StageRunner
from outrider.workers.engine.execution.sampler import Sampler
from outrider.workers.engine.handle import EngineInfo
from outrider.workers.engine.scheduling.scheduler import Scheduler, SchedulerConfig
from outrider.workers.experts.balance import ExpertBalance
from outrider.workers.loading.draft_model import load_draft_model
from outrider.workers.loading.drafters import (
    make_drafter,
    make_mtp_drafter,
    resolve_drafters,
    resolve_speculation,
    warn_of_missing_modules,
)
from outrider.workers.loading.fingerprint import fingerprint
from outrider.workers.loading.kernel_choice import resolve_kernels
from outrider.workers.loading.lanes import load_lanes
from outrider.workers.loading.model import ModelPart, Parts, load_parts
from outrider.workers.loading.module_swap import ModuleSwap
from outrider.workers.loading.resolved_config import (
    fitted_length,
    resolve_device,
    resolve_dtype,
    resolve_length,
    resolve_numerics,
)
from outrider.workers.loading.sharing import load_sharing
from outrider.workers.model.weights import Checkpoint
from outrider.workers.parallel import groups
from outrider.workers.parallel.links.rendezvous import connect_links, this_machine
from outrider.workers.parallel.links.stage_link import StageLink
from outrider.workers.parallel.mesh import Route
from outrider.workers.parallel.watchdog import Watchdog
from outrider.workers.sampling.grammar import Grammars
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.sampling.shared_head import SharedHead
from outrider.workers.serving.links import RankLinks
from outrider.workers.serving.observability.request_journal import RequestJournal
from outrider.workers.serving.observability.request_times import RequestTimes
from outrider.workers.serving.observability.tracing import open_tracing
from outrider.workers.serving.roles import Follower, Leader
from outrider.workers.serving.rpc.service import LeaderEndpoint
from outrider.workers.text.grammar_check import GrammarChecker
from outrider.workers.types.model.model_config import ModelConfig
from outrider.workers.types.requests.sampling_params import DRAFT_MODEL, LOOKUP, MTP

if TYPE_CHECKING:
    from outrider.workers.loading.rank_spec import RankSpec

TRACED_AS = "outrider-replica"  # the service's name in spans

_log = logging.getLogger("outrider.engine")


def load_role(spec: "RankSpec", progress: Callable[[float], None], give_up: Callable[[str], None]) -> Leader | Follower:
    """Joins the other ranks, loads this rank's weights and allocates its cache. Raises OutriderError on failure.

    `give_up(reason)` ends the process; it may be called from any thread.
    """
    return _Loader(spec, give_up).load(progress)


class _Loader:
    def __init__(self, spec: "RankSpec", give_up: Callable[[str], None]) -> None:
        self._spec = spec
        self._device = resolve_device(spec.engine, spec.local_rank)
        self._watchdog = Watchdog(give_up) if self._device.type == "cuda" and spec.world_size > 1 else None
        path = resolve_model(spec.engine.model)
        self._model = ModelConfig.load(path)
        self._checkpoint = Checkpoint(path)
        self._dtype = resolve_dtype(spec.engine, self._device)
        self._kernels = resolve_kernels(spec.engine, self._device, self._dtype, self._model)
        numerics = resolve_numerics(spec.engine, self._kernels, self._device)
        self._config = replace(spec.engine, numerics=numerics)
        self._max_model_len = resolve_length(self._config, self._model)
        self._grammars = Grammars(path, self._model.vocab_size, self._model.eos_token_ids)
        self._starts = SequenceStarts(self._model.eos_token_ids, self._grammars)
        self._modules = self._checkpoint.mtp_modules(self._model)
        self._speculation = resolve_speculation(self._config, self._modules > 0)
        self._drafters = resolve_drafters(self._config, self._modules > 0)

    def load(self, progress: Callable[[float], None]) -> Leader | Follower:
        spec = self._spec
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        if spec.world_size > 1:
            groups.join(spec.rank, spec.world_size, spec.master_address, spec.master_port, self._device)
        agreed = load_sharing(spec, self._config, self._model, self._device, self._dtype, self._watchdog)
        self._sharing, self._layout = agreed.sharing, agreed.layout
        wanted = self._wanted(progress)
        self._parts = load_parts(wanted)
        self._draft_parts = self._load_draft_model(wanted)
        blocks = self._allocate()
        self._max_model_len = fitted_length(self._config, self._max_model_len, blocks)
        runner = StageRunner(
            self._parts.stage,
            self._device,
            self._sharing.shard.data,
            self._live_experts(),
            self._lanes(),
            waits=spec.mesh.pipeline > 1,
        )
        sampler, mtp = self._sampler(), self._mtp_drafter()
        links = RankLinks(spec.rank, spec.mesh, self._links())
        progress(1.0)
        if spec.rank == 0:
            return self._leader(runner, sampler, mtp, links, blocks)
        live = links.follower(runner, sampler, mtp)
        return Follower(live=live, runner=runner, sampler=sampler, sharing=self._sharing)

    def _live_experts(self) -> LiveExperts | None:
        shard = self._sharing.shard
        if not shard.spread:
            return None
        return LiveExperts(self._parts.expert_layers, self._sharing.stage, shard, self._device)

    def _lanes(self) -> Lanes | None:
        """Collective: every rank must call it."""
        if self._spec.mesh.stage_size == 1:
            return None
        return load_lanes(self._config, self._sharing, self._spec.rank, this_machine(), self._device)

    def _sampler(self) -> Sampler | None:
        head, sharing = self._parts.head, self._sharing
        if head is None:
            return None
        shared = None
        if sharing.stage.size > 1:
            shared = SharedHead(head, sharing.stage, sharing.shard, self._model.vocab_size)
        return Sampler(head, self._starts, self._max_model_len, shared)

    def _mtp_drafter(self) -> Drafter | None:
        sharing = self._sharing
        shared = SharedDrafts(sharing.stage, sharing.shard, self._device) if sharing.shard.datas > 1 else None
        return make_mtp_drafter(self._parts, self._starts, self._config.block_size, shared)

    def _leader(
        self, runner: StageRunner, sampler: Sampler | None, mtp: Drafter | None, links: RankLinks, blocks: int
    ) -> Leader:
        spec = self._spec
        if MTP in self._drafters:
            warn_of_missing_modules(self._config, self._model, self._modules)
        pipeline = self._pipeline(runner, sampler, links, broadcasts_verdicts=mtp is None)
        depth = self._depth()
        scheduler = Scheduler(self._scheduler_config(pipeline.lanes, blocks), depth)
        journal = RequestJournal(open_tracing(spec.otlp_endpoint, TRACED_AS), spec.replica, spec.generation)
        times = RequestTimes(on_end=journal.ended)
        # No limit: gateways have accepted these requests already.
        checker = GrammarChecker(self._grammars.tokenizer_file, most_waiting=None)
        engine = Engine(
            info=self._info(),
            scheduler=scheduler,
            pipeline=pipeline,
            drafter=self._recorded(self._drafter(scheduler, depth, mtp, links)),
            depth=depth,
            load_module=ModuleSwap(self._wanted(), self._parts).load,
            balance=ExpertBalance.of(self._config, self._layout) if self._layout is not None else None,
            on_begin=times.scheduled,
            check=checker.submit,
            prepare=self._grammars.prepare,
        )
        return Leader(
            engine=engine,
            runner=runner,
            sampler=sampler,
            sharing=self._sharing,
            endpoint=_endpoint(spec),
            times=times,
            journal=journal,
            checker=checker,
        )

    def _pipeline(
        self, runner: StageRunner, sampler: Sampler | None, links: RankLinks, *, broadcasts_verdicts: bool
    ) -> Pipeline:
        if sampler is not None:
            return SingleStage(runner, sampler, links.stage_peers, broadcasts_verdicts=broadcasts_verdicts)
        up, down = links.column
        return FirstStage(
            runner, self._spec.mesh.pipeline, down, up, links.stage_peers, broadcasts_verdicts=broadcasts_verdicts
        )

    def _depth(self) -> DepthPolicy:
        experts = max(1, self._model.n_routed_experts), max(1, self._model.num_experts_per_tok)
        models = [name for name in self._drafters if name != LOOKUP]
        warn = partial(_log.warning, "%s")
        return DepthPolicy(self._speculation, experts, models, self._sharing.shard.datas, warn)

    def _drafter(
        self, scheduler: Scheduler, depth: DepthPolicy, mtp: Drafter | None, links: RankLinks
    ) -> Drafter | None:
        """The leader's drafter. The other ranks of the first stage are sent what the MTP module must compute."""
        return make_drafter(
            self._drafters,
            self._draft_parts,
            self._starts,
            self._config,
            self._speculation,
            scheduler.live,
            depth,
            BroadcastingDrafter(mtp, links.stage_peers.broadcast)
            if mtp is not None and self._spec.mesh.stage_size > 1
            else mtp,
        )

    def _recorded(self, drafter: Drafter | None) -> Drafter | None:
        """The drafter, wrapped in a Recorder of finished sequences if `harvest_path` is set."""
        config = self._config
        if config.harvest_path is None:
            return drafter
        from outrider.workers.serving.harvest_recorder import Recorder  # imported only for harvesting

        return Recorder(drafter, Path(config.harvest_path), max_bytes=int(config.harvest_max_gib * 2**30))

    def _scheduler_config(self, lanes: int, blocks: int) -> SchedulerConfig:
        return SchedulerConfig(
            max_num_seqs=self._config.max_num_seqs,
            max_num_batched_tokens=self._config.max_num_batched_tokens,
            block_size=self._config.block_size,
            num_blocks=blocks,
            max_model_len=self._max_model_len,
            lanes=lanes,
            data_groups=self._config.data_parallel_size,
            enable_prefix_caching=self._config.enable_prefix_caching,
            speculation=self._speculation,
            recomputed_tokens=self._modules if MTP in self._drafters else 1,
            may_skip_drafter=self._spec.mesh.size == 1 and self._config.harvest_path is None,
        )

    def _wanted(self, progress: Callable[[float], None] = lambda share: None) -> ModelPart:
        return ModelPart(
            config=self._config,
            model=self._model,
            checkpoint=self._checkpoint,
            layers=self._spec.layers,
            device=self._device,
            dtype=self._dtype,
            kernels=self._kernels,
            drafts=self._spec.layers.start == 0 and MTP in self._drafters,
            sharing=self._sharing,
            starts=self._starts,
            progress=lambda done, total: progress(done / total),
        )

    def _load_draft_model(self, wanted: ModelPart) -> Parts | None:
        """The separate draft model's parts: on rank 0, if that drafter is enabled."""
        name = self._config.draft_model
        if name is None or self._spec.rank != 0 or DRAFT_MODEL not in self._drafters:
            return None
        return load_draft_model(wanted, name, self._max_model_len)

    def _allocate(self) -> int:
        """Allocates the cache; returns its number of blocks, the minimum over the replica's ranks."""
        each = [parts for parts in (self._parts, self._draft_parts) if parts is not None]
        per_block = sum(parts.cache_bytes_per_block for parts in each)
        of_rounds = round_bytes(self._config, self._model, self._sharing.shard, self._dtype.itemsize)
        blocks = blocks_for(self._config, self._max_model_len, per_block, free_bytes(self._device, of_rounds))
        blocks = groups.all_reduce_min(blocks)
        for parts in each:
            parts.allocate_cache(blocks)
        return blocks

    def _links(self) -> dict[Route, StageLink]:
        """The links that begin or end at this rank. Collective: every rank must call it."""
        spec, timeout_s = self._spec, self._config.round_timeout_s
        if spec.world_size == 1:
            return {}
        ends = connect_links(
            spec.rank, spec.mesh.routes(), self._parts.hidden_dtype, self._device, this_machine(), self._watchdog
        )
        peers = {route: route[0] if route[1] == spec.rank else route[1] for route in ends}
        return {route: StageLink(end, spec.describe(peers[route]), timeout_s) for route, end in ends.items()}

    def _info(self) -> EngineInfo:
        return EngineInfo(
            fingerprint=fingerprint(
                self._config, self._checkpoint.content_hash(), self._dtype, self._device, self._kernels
            ),
            max_model_len=self._max_model_len,
            vocab_size=self._model.vocab_size,
            dtype=str(self._dtype).removeprefix("torch."),
            numerics=self._config.numerics,
            speculation=str(self._speculation),
            has_mtp=self._modules > 0,
            drafters=self._drafters,
            verification=self._config.verification,
            max_num_seqs=self._config.max_num_seqs,
        )


def _endpoint(spec: "RankSpec") -> LeaderEndpoint | None:
    """None: the engine is used in this process only."""
    if spec.service_host is None:
        return None
    return LeaderEndpoint(host=spec.service_host, ports=spec.service_ports, key=spec.service_key)
