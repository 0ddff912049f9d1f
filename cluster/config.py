"""Settings of `outrider serve`: a flat YAML file, `--set key=value` and options, later ones taking precedence.

An unknown key is an error that names the key and its neighbours.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from outrider.cluster.autoscale import AutoscalePolicy
from outrider.cluster.gateway.admission import AdmissionLimits
from outrider.cluster.gateway.door import Door
from outrider.workers.config import EngineConfig, ParallelConfig
from outrider.workers.tracing import endpoint_in_force

_ADMISSION = tuple(field.name for field in dataclasses.fields(AdmissionLimits))
_SIZES = tuple(field.name for field in dataclasses.fields(ParallelConfig))


class SettingsError(ValueError):
    """An invalid setting, in one line that names it."""


class ServeSettings(BaseModel):
    """All settings of `outrider serve`. EngineConfig checks the ranges of the engine's settings."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: str = Field(default="outrider", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    ray_address: str = "auto"
    host: str = "127.0.0.1"
    port: int = Field(default=50051, ge=0, le=65535)
    http_port: int = Field(default=8000, ge=0, le=65535)  # 0: off
    http_host: str | None = None  # None: as `host`
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    health_port: int | None = Field(default=None, ge=0, le=65535)
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    auth_token_file: str | None = None
    max_live_requests: int = 1024  # on the gateway; a request counts once per output
    max_live_requests_per_token: int | None = None
    max_queued_tokens: int = 1_000_000  # prompt tokens of requests that wait for their first token
    max_queue_wait_s: float = 10.0  # a request that would wait longer for its turn is refused
    write_timeout_s: float = Field(default=20.0, ge=0)  # seconds after which a client that reads nothing is cancelled
    max_allowed_token_ids: int = Field(default=16_384, ge=0)
    share_prefix_cache: bool = False  # among tokens, which can then tell by timing what others asked
    cluster_key_file: str | None = None  # None: a random key, so other gateways cannot join
    # Where gateways reach the controller; "": loopback, or this node's address if there are several nodes
    controller_host: str = ""
    controller_port: int = Field(default=0, ge=0, le=65535)
    leader_ports: str = "0"  # port, or FIRST-LAST, that replicas' leaders listen on; 0: any
    take_over: bool = False  # adopt what a killed run left, if its settings were the same; False: remove it
    replicas: int = Field(default=1, ge=1, le=1024)
    ranks_per_node: int | None = Field(default=None, ge=1)  # of nodes that do not exist yet; None: as the existing ones
    autoscale_max_replicas: int | None = Field(default=None, ge=1, le=1024)  # None: no autoscaler
    autoscale_min_replicas: int = 1
    autoscale_target_tokens: int = 16_384
    autoscale_target_wait_s: float = 5.0
    autoscale_headroom: float = 0.2
    autoscale_cooldown_s: float = 300.0
    kubernetes_ray_cluster: str | None = Field(default=None, pattern=r"^[a-z0-9-]+/[a-z0-9.-]+$")  # NAMESPACE/NAME
    kubernetes_worker_group: str = "workers"
    kubernetes_scale_deployment: str | None = Field(default=None, pattern=r"^[a-z0-9-]+/[a-z0-9.-]+$")  # NAMESPACE/NAME
    drain_grace_s: float = Field(default=300.0, ge=0)  # how long a leaving replica may finish its requests
    otlp_endpoint: str | None = None  # of a collector of spans; None: OTEL_EXPORTER_OTLP_ENDPOINT's

    model: str = "scout"
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    expert_parallel_size: int = 1
    data_parallel_size: int = 1
    device: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    numerics: str = "exact"
    kernels: str = "auto"
    weight_cache_dir: str | None = None
    weight_cache_max_gib: float = 64.0
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    kv_cache_memory_bytes: int | None = None
    enable_prefix_caching: bool = True
    speculation: str | int = "auto"
    drafter: str = "auto"
    draft_model: str | None = None
    draft_quantization: str | None = "auto"
    verification: str = "coupled"
    seed: int = 0
    harvest_path: str | None = None
    harvest_max_gib: float = 64.0
    enable_eplb: bool = False
    num_redundant_experts: int = 0
    eplb_window_size: int = 1000
    eplb_step_interval: int = 3000
    enable_dbo: bool | None = None
    dbo_token_threshold: int = 32
    round_timeout_s: float = 300.0

    @field_validator("speculation", mode="before")
    @classmethod
    def _spoken_speculation(cls, value: object) -> object:
        """YAML reads a bare `off` as false, and a command line gives numbers as strings."""
        if value is False:
            return "off"
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @property
    def leader_port_range(self) -> tuple[int, int]:
        """The first and the last port."""
        first, _, last = self.leader_ports.partition("-")
        return int(first), int(last or first)

    @field_validator("leader_ports", mode="before")
    @classmethod
    def _port_range(cls, value: object) -> str:
        """YAML reads a single port as a number."""
        found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", str(value))
        if found is None or not 0 <= int(found[1]) <= int(found[2] or found[1]) <= 65535:
            raise ValueError("must be a port or FIRST-LAST")
        return str(value)

    def door(self) -> Door:
        """SettingsError if options do not go together."""
        paths = ("tls_cert", "tls_key", "tls_client_ca", "auth_token_file")
        given = {name: Path(value) for name in paths if (value := getattr(self, name)) is not None}
        try:
            return Door(**given, health_port=self.health_port)
        except ValueError as error:
            raise SettingsError(str(error)) from error

    def admission(self) -> AdmissionLimits:
        """SettingsError if a value is out of its range."""
        try:
            return AdmissionLimits(**{name: getattr(self, name) for name in _ADMISSION})
        except ValueError as error:
            raise SettingsError(str(error)) from error

    def gateway_arguments(self) -> list[str]:
        """The options of `outrider gateway` that say the same of its limits."""
        given = [(name, getattr(self, name)) for name in (*_ADMISSION, "write_timeout_s", "max_allowed_token_ids")]
        options = [(f"--{name.replace('_', '-')}", value) for name, value in given if value is not None]
        words = [word for option, value in options for word in (option, str(value))]
        return [*words, "--share-prefix-cache"] if self.share_prefix_cache else words

    def spans_go_to(self, environment: Mapping[str, str]) -> str:
        """The collector's endpoint, from settings or environment; "" for none. SettingsError if it is invalid."""
        try:
            return endpoint_in_force(self.otlp_endpoint, environment)
        except ValueError as error:
            raise SettingsError(str(error)) from error

    def autoscale(self) -> AutoscalePolicy | None:
        """None without an autoscaler. SettingsError if a value is out of its range."""
        if self.autoscale_max_replicas is not None and self.kubernetes_scale_deployment is not None:
            raise SettingsError(
                "autoscale_max_replicas must be unset with kubernetes_scale_deployment: one of them scales"
            )
        if self.autoscale_max_replicas is None:
            return None
        try:
            return AutoscalePolicy(
                min_replicas=self.autoscale_min_replicas,
                max_replicas=self.autoscale_max_replicas,
                target_tokens=self.autoscale_target_tokens,
                target_wait_s=self.autoscale_target_wait_s,
                headroom=self.autoscale_headroom,
                cooldown_s=self.autoscale_cooldown_s,
            )
        except ValueError as error:
            raise SettingsError(str(error)) from error

    def engine(self) -> EngineConfig:
        """The settings of the ranks. SettingsError if a value is out of its range."""
        names = {field.name for field in dataclasses.fields(EngineConfig)} & set(type(self).model_fields)
        values = {name: getattr(self, name) for name in names}
        try:
            parallel = ParallelConfig(**{name: getattr(self, name) for name in _SIZES})
            return EngineConfig(parallel=parallel, **values)
        except ValueError as error:
            raise SettingsError(str(error)) from error


def load_settings(
    config: Path | None = None, assignments: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> ServeSettings:
    """Settings from a YAML file, `key=value` assignments and options (None: not given); later ones win."""
    values: dict[str, Any] = {}
    if config is not None:
        values.update(_read_yaml(config))
    values.update(parse_assignments(assignments))
    values.update({key: value for key, value in (options or {}).items() if value is not None})
    _refuse_unknown_keys(values)
    try:
        settings = ServeSettings(**values)
    except ValidationError as error:
        raise SettingsError(_one_line(error)) from error
    settings.engine()
    settings.door()
    settings.admission()
    settings.autoscale()
    return settings


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SettingsError(f"cannot read --config {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"--config {path} must hold settings (key: value), got a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


_EXPONENT = re.compile(r"\s*[-+]?\d+[eE][-+]?\d+\s*")  # a number that YAML 1.1 reads as a string


def parse_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Parses `key=value` strings; later ones take precedence. SettingsError names one that is malformed."""
    return dict(_parse_assignment(text) for text in texts)


def _parse_assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SettingsError(f"--set takes key=value, got {text!r}")
    try:
        return key.strip(), float(value) if _EXPONENT.fullmatch(value) else yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SettingsError(f"--set {key.strip()}: {value!r} is not a YAML value") from error


def _refuse_unknown_keys(values: Mapping[str, Any]) -> None:
    known = list(ServeSettings.model_fields)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known settings: {', '.join(sorted(known))}"
            raise SettingsError(f"unknown setting {key!r}: {hint}")


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{first['loc'][0]}: {first['msg']}, got {first['input']!r}"
