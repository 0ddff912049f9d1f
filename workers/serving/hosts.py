"""Starts the engine of `LLM`: one rank runs in a thread of this process, several ranks run as local processes."""

import threading
from collections.abc import Callable
from typing import Protocol

from outrider.workers.config import EngineConfig, resolve_model
from outrider.workers.engine.handle import EngineHandle
from outrider.workers.loading.rank_spec import RankSpec
from outrider.workers.parallel.shard import check_split
from outrider.workers.parallel.stages import expected_draft_steps, split_layers
from outrider.workers.serving.loading_bar import LoadingBar
from outrider.workers.serving.local import LocalGang
from outrider.workers.serving.rank import Rank
from outrider.workers.serving.rank_status import RankStatus
from outrider.workers.serving.rpc.leader_client import RemoteEngine
from outrider.workers.types.errors import EngineStoppedError, OutriderError
from outrider.workers.types.model.model_config import ModelConfig

OnProgress = Callable[[float], None]  # called with the share of weights loaded, 0..1
_CLOSE_TIMEOUT_S = 30.0
_WATCHER_S = 2.0  # the watcher may find the cause of a broken connection this much later


class EngineHost(Protocol):
    """An engine and the thread or processes that it runs in."""

    @property
    def engine(self) -> EngineHandle: ...

    def explain(self, symptom: str) -> str:
        """Why the engine ended, as far as the host knows; else `symptom`."""
        ...

    @property
    def statuses(self) -> list[RankStatus]: ...

    def close(self) -> None: ...


def start_engine(config: EngineConfig) -> EngineHost:
    """Returns when the engine is ready. Raises OutriderError or ValueError if it cannot start."""
    model = ModelConfig.load(resolve_model(config.model))
    check_split(model, config, config.num_redundant_experts)
    steps = expected_draft_steps(config.speculation, model)
    splits = split_layers(model, config.pipeline_parallel_size, steps)
    host = InProcess if config.world_size == 1 else LocalProcesses
    with LoadingBar(config.model) as bar:
        return host(config, splits, bar.show)


class InProcess:
    """Runs the only rank in a thread of this process."""

    def __init__(
        self, config: EngineConfig, layer_splits: tuple[tuple[int, int], ...], on_progress: OnProgress
    ) -> None:
        self._rank = Rank(RankSpec(engine=config, layer_splits=layer_splits))
        self._rank.load(on_progress)
        self._settled = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="outrider-engine")
        self._thread.start()
        self._settled.wait()
        if error := self._rank.status().error:
            raise OutriderError(error)

    @property
    def engine(self) -> EngineHandle:
        return self._rank.engine

    def explain(self, symptom: str) -> str:
        return self._rank.status().error or symptom

    @property
    def statuses(self) -> list[RankStatus]:
        return [self._rank.status()]

    def close(self) -> None:
        self._rank.stop("the engine was closed")
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        try:
            self._rank.run(on_ready=self._settled.set)
        finally:
            self._settled.set()


class LocalProcesses:
    """Runs several ranks as processes of this machine. Connects to the leader over gRPC, as a gateway does."""

    def __init__(
        self, config: EngineConfig, layer_splits: tuple[tuple[int, int], ...], on_progress: OnProgress
    ) -> None:
        self._gang = LocalGang(config, layer_splits, on_progress=on_progress)
        try:
            self._client = RemoteEngine.connect(self._gang.leader_address, key=self._gang.key)
        except EngineStoppedError:
            self._gang.close()
            raise

    @property
    def engine(self) -> EngineHandle:
        return self._client

    def explain(self, symptom: str) -> str:
        return self._gang.failure_within(_WATCHER_S) or symptom

    @property
    def statuses(self) -> list[RankStatus]:
        return self._gang.statuses

    def close(self) -> None:
        self._client.close()
        self._gang.close()
