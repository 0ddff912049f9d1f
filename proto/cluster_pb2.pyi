from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("name", "model", "version", "replicas", "problem", "desired_replicas", "last_scaling", "gateway")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    DESIRED_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    LAST_SCALING_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: str
    version: str
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaStatus]
    problem: str
    desired_replicas: int
    last_scaling: str
    gateway: GatewayStatus
    def __init__(self, name: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., replicas: _Optional[_Iterable[_Union[ReplicaStatus, _Mapping]]] = ..., problem: _Optional[str] = ..., desired_replicas: _Optional[int] = ..., last_scaling: _Optional[str] = ..., gateway: _Optional[_Union[GatewayStatus, _Mapping]] = ...) -> None: ...

class GatewayStatus(_message.Message):
    __slots__ = ("live_requests", "queued_requests", "refused", "resumed", "moved", "waiting_for_successor", "slow_readers", "longest_loop_lag_s", "controller_lost", "stalled_replicas")
    class RefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    LIVE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_SUCCESSOR_FIELD_NUMBER: _ClassVar[int]
    SLOW_READERS_FIELD_NUMBER: _ClassVar[int]
    LONGEST_LOOP_LAG_S_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_LOST_FIELD_NUMBER: _ClassVar[int]
    STALLED_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    live_requests: int
    queued_requests: int
    refused: _containers.ScalarMap[str, int]
    resumed: int
    moved: int
    waiting_for_successor: int
    slow_readers: int
    longest_loop_lag_s: float
    controller_lost: bool
    stalled_replicas: int
    def __init__(self, live_requests: _Optional[int] = ..., queued_requests: _Optional[int] = ..., refused: _Optional[_Mapping[str, int]] = ..., resumed: _Optional[int] = ..., moved: _Optional[int] = ..., waiting_for_successor: _Optional[int] = ..., slow_readers: _Optional[int] = ..., longest_loop_lag_s: _Optional[float] = ..., controller_lost: _Optional[bool] = ..., stalled_replicas: _Optional[int] = ...) -> None: ...

class WatchStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchStatusResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: GetStatusResponse
    def __init__(self, status: _Optional[_Union[GetStatusResponse, _Mapping]] = ...) -> None: ...

class ScaleRequest(_message.Message):
    __slots__ = ("replicas",)
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    replicas: int
    def __init__(self, replicas: _Optional[int] = ...) -> None: ...

class ScaleResponse(_message.Message):
    __slots__ = ("desired", "ready", "pending", "reason")
    DESIRED_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    desired: int
    ready: int
    pending: int
    reason: str
    def __init__(self, desired: _Optional[int] = ..., ready: _Optional[int] = ..., pending: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("replica",)
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    replica: str
    def __init__(self, replica: _Optional[str] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("replica", "running", "desired")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    DESIRED_FIELD_NUMBER: _ClassVar[int]
    replica: str
    running: int
    desired: int
    def __init__(self, replica: _Optional[str] = ..., running: _Optional[int] = ..., desired: _Optional[int] = ...) -> None: ...

class ReplicaStatus(_message.Message):
    __slots__ = ("name", "generation", "state", "problem", "ranks", "engine", "last_ending", "fingerprint")
    NAME_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    LAST_ENDING_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    generation: int
    state: str
    problem: str
    ranks: _containers.RepeatedCompositeFieldContainer[RankStatus]
    engine: EngineStatus
    last_ending: str
    fingerprint: str
    def __init__(self, name: _Optional[str] = ..., generation: _Optional[int] = ..., state: _Optional[str] = ..., problem: _Optional[str] = ..., ranks: _Optional[_Iterable[_Union[RankStatus, _Mapping]]] = ..., engine: _Optional[_Union[EngineStatus, _Mapping]] = ..., last_ending: _Optional[str] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class RankStatus(_message.Message):
    __slots__ = ("rank", "stage", "first_layer", "end_layer", "node", "pid", "device", "state", "busy", "visible_devices", "interface", "node_id", "carriers", "drafting")
    RANK_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    VISIBLE_DEVICES_FIELD_NUMBER: _ClassVar[int]
    INTERFACE_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    CARRIERS_FIELD_NUMBER: _ClassVar[int]
    DRAFTING_FIELD_NUMBER: _ClassVar[int]
    rank: int
    stage: int
    first_layer: int
    end_layer: int
    node: str
    pid: int
    device: str
    state: str
    busy: float
    visible_devices: str
    interface: str
    node_id: str
    carriers: str
    drafting: float
    def __init__(self, rank: _Optional[int] = ..., stage: _Optional[int] = ..., first_layer: _Optional[int] = ..., end_layer: _Optional[int] = ..., node: _Optional[str] = ..., pid: _Optional[int] = ..., device: _Optional[str] = ..., state: _Optional[str] = ..., busy: _Optional[float] = ..., visible_devices: _Optional[str] = ..., interface: _Optional[str] = ..., node_id: _Optional[str] = ..., carriers: _Optional[str] = ..., drafting: _Optional[float] = ...) -> None: ...

class EngineStatus(_message.Message):
    __slots__ = ("running", "waiting", "rounds", "kv_cache_usage", "drafted", "accepted", "generated_tokens", "speculation", "experts")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_USAGE_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    rounds: int
    kv_cache_usage: float
    drafted: int
    accepted: int
    generated_tokens: int
    speculation: SpeculationStatus
    experts: ExpertStatus
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., rounds: _Optional[int] = ..., kv_cache_usage: _Optional[float] = ..., drafted: _Optional[int] = ..., accepted: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., speculation: _Optional[_Union[SpeculationStatus, _Mapping]] = ..., experts: _Optional[_Union[ExpertStatus, _Mapping]] = ...) -> None: ...

class ExpertStatus(_message.Message):
    __slots__ = ("imbalance", "replacements", "moves", "stopped")
    class ImbalanceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    IMBALANCE_FIELD_NUMBER: _ClassVar[int]
    REPLACEMENTS_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    imbalance: _containers.ScalarMap[int, float]
    replacements: int
    moves: int
    stopped: bool
    def __init__(self, imbalance: _Optional[_Mapping[int, float]] = ..., replacements: _Optional[int] = ..., moves: _Optional[int] = ..., stopped: _Optional[bool] = ...) -> None: ...

class SpeculationStatus(_message.Message):
    __slots__ = ("price", "speedup", "budget", "draft_depth", "drafted_per_position", "accepted_per_position", "alarms", "disabled_rounds", "disabled_reason", "setting", "drafters", "has_mtp", "acceptance_rate", "mean_accepted_length")
    class AlarmsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    PRICE_FIELD_NUMBER: _ClassVar[int]
    SPEEDUP_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    DRAFT_DEPTH_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_PER_POSITION_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_PER_POSITION_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    DISABLED_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    DISABLED_REASON_FIELD_NUMBER: _ClassVar[int]
    SETTING_FIELD_NUMBER: _ClassVar[int]
    DRAFTERS_FIELD_NUMBER: _ClassVar[int]
    HAS_MTP_FIELD_NUMBER: _ClassVar[int]
    ACCEPTANCE_RATE_FIELD_NUMBER: _ClassVar[int]
    MEAN_ACCEPTED_LENGTH_FIELD_NUMBER: _ClassVar[int]
    price: float
    speedup: float
    budget: float
    draft_depth: float
    drafted_per_position: _containers.RepeatedScalarFieldContainer[int]
    accepted_per_position: _containers.RepeatedScalarFieldContainer[int]
    alarms: _containers.ScalarMap[str, int]
    disabled_rounds: int
    disabled_reason: str
    setting: str
    drafters: _containers.RepeatedScalarFieldContainer[str]
    has_mtp: bool
    acceptance_rate: float
    mean_accepted_length: float
    def __init__(self, price: _Optional[float] = ..., speedup: _Optional[float] = ..., budget: _Optional[float] = ..., draft_depth: _Optional[float] = ..., drafted_per_position: _Optional[_Iterable[int]] = ..., accepted_per_position: _Optional[_Iterable[int]] = ..., alarms: _Optional[_Mapping[str, int]] = ..., disabled_rounds: _Optional[int] = ..., disabled_reason: _Optional[str] = ..., setting: _Optional[str] = ..., drafters: _Optional[_Iterable[str]] = ..., has_mtp: _Optional[bool] = ..., acceptance_rate: _Optional[float] = ..., mean_accepted_length: _Optional[float] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("name", "path", "fingerprint", "max_model_len", "vocab_size", "dtype", "numerics", "speculation", "has_mtp")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    HAS_MTP_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    fingerprint: str
    max_model_len: int
    vocab_size: int
    dtype: str
    numerics: str
    speculation: str
    has_mtp: bool
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ..., fingerprint: _Optional[str] = ..., max_model_len: _Optional[int] = ..., vocab_size: _Optional[int] = ..., dtype: _Optional[str] = ..., numerics: _Optional[str] = ..., speculation: _Optional[str] = ..., has_mtp: _Optional[bool] = ...) -> None: ...

class WatchRoutesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchRoutesResponse(_message.Message):
    __slots__ = ("routes", "ended", "draining", "version", "pending")
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    ended: _containers.RepeatedCompositeFieldContainer[EndedReplica]
    draining: bool
    version: int
    pending: int
    def __init__(self, routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ..., ended: _Optional[_Iterable[_Union[EndedReplica, _Mapping]]] = ..., draining: _Optional[bool] = ..., version: _Optional[int] = ..., pending: _Optional[int] = ...) -> None: ...

class ReportWaitingRequest(_message.Message):
    __slots__ = ("gateway", "tokens", "oldest_wait_s")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    OLDEST_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    tokens: int
    oldest_wait_s: float
    def __init__(self, gateway: _Optional[str] = ..., tokens: _Optional[int] = ..., oldest_wait_s: _Optional[float] = ...) -> None: ...

class ReportWaitingResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Route(_message.Message):
    __slots__ = ("replica", "generation", "address")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    replica: str
    generation: int
    address: str
    def __init__(self, replica: _Optional[str] = ..., generation: _Optional[int] = ..., address: _Optional[str] = ...) -> None: ...

class EndedReplica(_message.Message):
    __slots__ = ("replica", "generation", "reason")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    replica: str
    generation: int
    reason: str
    def __init__(self, replica: _Optional[str] = ..., generation: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class SwapDraftersRequest(_message.Message):
    __slots__ = ("checkpoint",)
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    checkpoint: str
    def __init__(self, checkpoint: _Optional[str] = ...) -> None: ...

class SwapDraftersResponse(_message.Message):
    __slots__ = ("replicas",)
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, replicas: _Optional[_Iterable[str]] = ...) -> None: ...
