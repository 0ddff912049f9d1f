"""Settings of `outrider serve`, from a flat YAML file, `--set key=value` and options. Later ones take precedence.

An unknown key is an error that names the key and its neighbours.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml

from outrider.cluster.api.errors import SettingsError
from outrider.cluster.controller.scaling.autoscale import AutoscalePolicy
from outrider.cluster.gateway.requests.admission import AdmissionLimits
from outrider.cluster.gateway.requests.limits import RequestLimits
from outrider.cluster.gateway.settings import SharedGatewaySettings
from outrider.workers.config import EngineConfig
from outrider.workers.serving.observability.tracing import resolve_endpoint
from outrider.workers.types.settings import Setting, option_words, part_of, settings_of


@dataclass(frozen=True)
class ServeSettings(EngineConfig, SharedGatewaySettings):
    """All settings of `outrider serve`: those of the engine, of the gateway, and of the cluster."""

    name: Annotated[
        str, Setting("Name of the cluster, unique among running ones.", pattern=r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
    ] = "outrider"
    ray_address: Annotated[str, Setting("auto (a running Ray cluster, or start one), local, or HOST:PORT.")] = "auto"
    controller_host: Annotated[
        str,
        Setting("Host that the controller listens on. By default loopback, or this node's address if there are more."),
    ] = ""
    controller_port: Annotated[int, Setting("Port of the controller; 0: any free one.", least=0, most=65535)] = 0
    leader_ports: Annotated[
        str,
        Setting("Port, or FIRST-LAST, that replicas' leaders listen on; 0: any.", pattern=r"\d{1,5}(-\d{1,5})?"),
    ] = "0"
    take_over: Annotated[
        bool, Setting("Adopt replicas of a killed run if it had the same settings. Otherwise remove them.")
    ] = False
    replicas: Annotated[int, Setting("Number of replicas; `outrider scale` changes it.", least=1, most=1024)] = 1
    ranks_per_node: Annotated[
        int | None, Setting("Ranks on a node that an autoscaler adds. By default as on the existing ones.", least=1)
    ] = None
    autoscale_max_replicas: Annotated[
        int | None, Setting("Maximum number of replicas. By default there is no autoscaler.", least=1, most=1024)
    ] = None
    autoscale_min_replicas: Annotated[int, Setting("Minimum number of replicas.", least=0)] = 1
    autoscale_target_tokens: Annotated[int, Setting("Tokens in flight on a replica to scale to.", least=1)] = 16_384
    autoscale_target_wait_s: Annotated[
        float, Setting("Wait for a first token in seconds from which a replica is added.", least=0, finite=True)
    ] = 5.0
    autoscale_headroom: Annotated[
        float, Setting("Spare share for a rise in load: 0.2 is a fifth more.", least=0, finite=True)
    ] = 0.2
    autoscale_cooldown_s: Annotated[
        float, Setting("Seconds of lower load before a replica is removed.", least=0, finite=True)
    ] = 300.0
    kubernetes_ray_cluster: Annotated[
        str | None,
        Setting(
            "NAMESPACE/NAME of the RayCluster whose worker group is scaled with the replicas. By default none.",
            pattern=r"[a-z0-9-]+/[a-z0-9.-]+",
        ),
    ] = None
    kubernetes_worker_group: Annotated[str, Setting("Worker group of kubernetes_ray_cluster.")] = "workers"
    kubernetes_scale_deployment: Annotated[
        str | None,
        Setting(
            "NAMESPACE/NAME of a Deployment whose number of pods is the number of replicas. By default none.",
            pattern=r"[a-z0-9-]+/[a-z0-9.-]+",
        ),
    ] = None
    drain_grace_s: Annotated[
        float, Setting("Seconds that a leaving replica may finish its requests before they move.", least=0)
    ] = 300.0

    def __post_init__(self) -> None:
        EngineConfig.__post_init__(self)
        SharedGatewaySettings.__post_init__(self)
        first, last = self.leader_port_range
        if not first <= last <= 65535:
            raise ValueError(f"leader_ports must be a port or FIRST-LAST, at most 65535, got {self.leader_ports!r}")
        _ = self.autoscale

    @property
    def leader_port_range(self) -> tuple[int, int]:
        """The first and the last port."""
        first, _, last = self.leader_ports.partition("-")
        return int(first), int(last or first)

    @property
    def engine(self) -> EngineConfig:
        """The settings of the ranks."""
        return part_of(self, EngineConfig)

    def gateway_arguments(self) -> list[str]:
        """The options that give `outrider gateway` the same limits."""
        limits = (*settings_of(AdmissionLimits), *settings_of(RequestLimits), "write_timeout_s", "share_prefix_cache")
        return option_words({name: getattr(self, name) for name in limits})

    def spans_go_to(self, environment: Mapping[str, str]) -> str:
        """Collector endpoint, from settings or environment; "" for none. Raises SettingsError if it is invalid."""
        try:
            return resolve_endpoint(self.otlp_endpoint, environment)
        except ValueError as error:
            raise SettingsError(str(error)) from error

    @property
    def autoscale(self) -> AutoscalePolicy | None:
        """The policy, or None without an autoscaler."""
        if self.autoscale_max_replicas is not None and self.kubernetes_scale_deployment is not None:
            raise ValueError("autoscale_max_replicas and kubernetes_scale_deployment must not both be set")
        if self.autoscale_max_replicas is None:
            return None
        return AutoscalePolicy(
            min_replicas=self.autoscale_min_replicas,
            max_replicas=self.autoscale_max_replicas,
            target_tokens=self.autoscale_target_tokens,
            target_wait_s=self.autoscale_target_wait_s,
            headroom=self.autoscale_headroom,
            cooldown_s=self.autoscale_cooldown_s,
        )


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
        return ServeSettings(**{name: _unquoted(name, value) for name, value in values.items()})
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _unquoted(name: str, value: Any) -> Any:
    """Undoes YAML's types: it reads a bare `off` as false, and a single port as a number."""
    if name == "speculation":
        value = "off" if value is False else value
        return int(value) if isinstance(value, str) and value.isdecimal() else value
    return str(value) if name == "leader_ports" and type(value) is int else value


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
        raise SettingsError(f"--config {path} must contain settings (key: value), got a {type(values).__name__}")
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
    known = settings_of(ServeSettings)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known settings: {', '.join(sorted(known))}"
            raise SettingsError(f"unknown setting {key!r}: {hint}")
