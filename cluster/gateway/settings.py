"""Settings of a gateway. `outrider serve` and `outrider gateway` have the shared ones in common."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from outrider.cluster.gateway.access.settings import AccessSettings
from outrider.cluster.gateway.requests.admission import AdmissionLimits
from outrider.cluster.gateway.requests.limits import RequestLimits
from outrider.workers.types.settings import Setting, part_of


@dataclass(frozen=True, kw_only=True)
class SharedGatewaySettings(AccessSettings, AdmissionLimits, RequestLimits):
    """Settings that `outrider serve` and `outrider gateway` share: addresses, limits, access, telemetry."""

    host: Annotated[str, Setting("Host that the gateway listens on.")] = "127.0.0.1"
    port: Annotated[int, Setting("gRPC port of the gateway; 0: any free one.", least=0, most=65535)] = 50051
    http_port: Annotated[int, Setting("HTTP port of the gateway; 0: off.", least=0, most=65535)] = 8000
    http_host: Annotated[str | None, Setting("Host for HTTP. By default the host for gRPC.")] = None
    metrics_port: Annotated[
        int | None, Setting("Port for Prometheus metrics; 0: any free one. By default off.", least=0, most=65535)
    ] = None
    cluster_key_file: Annotated[
        Path | None,
        Setting(
            'File with the key that the processes of a cluster share; "-": standard input.'
            " By default random, so that no other gateway can join."
        ),
    ] = None
    write_timeout_s: Annotated[
        float, Setting("Seconds after which a client that does not read is disconnected.", least=0)
    ] = 20.0
    share_prefix_cache: Annotated[
        bool, Setting("Share cached prefixes among bearer tokens. Response times then reveal cached prompts of others.")
    ] = False
    otlp_endpoint: Annotated[
        str | None,
        Setting(
            "OpenTelemetry collector of spans and metrics, http://HOST:PORT. By default OTEL_EXPORTER_OTLP_ENDPOINT."
        ),
    ] = None

    def __post_init__(self) -> None:
        AccessSettings.__post_init__(self)  # also checks the values of all other fields

    @property
    def access(self) -> AccessSettings:
        return part_of(self, AccessSettings)

    @property
    def admission(self) -> AdmissionLimits:
        return part_of(self, AdmissionLimits)

    @property
    def limits(self) -> RequestLimits:
        return part_of(self, RequestLimits)


@dataclass(frozen=True, kw_only=True)
class GatewaySettings(SharedGatewaySettings):
    """All settings of `outrider gateway`."""

    controller: Annotated[str, Setting("HOST:PORT of the controller.")]
    drain_grace_s: Annotated[float, Setting("Seconds that running requests may continue after SIGTERM.", least=0)] = (
        20.0
    )
    reason_wait_s: Annotated[
        float, Setting("Seconds that requests of a lost replica wait for the controller to give the reason.", least=0)
    ] = 5.0
    resume_wait_s: Annotated[
        float, Setting("Seconds that requests of a lost replica wait for another one.", least=0)
    ] = 600.0
    end_with_stdin: Annotated[bool, Setting("Drain when standard input closes.")] = False
    otlp_metrics_endpoint: str = ""  # from otlp_endpoint and the environment; "": not sent
    cluster_key: str = field(default="", repr=False)  # read from cluster_key_file
