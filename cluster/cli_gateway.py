"""`outrider gateway`: from the command's options to a gateway's settings."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outrider.cluster.cli_listening import GatewayOptions
from outrider.cluster.config import SettingsError
from outrider.cluster.gateway.door import Door
from outrider.cluster.gateway.limits import RequestLimits
from outrider.cluster.gateway.server import GatewaySettings, run_gateway
from outrider.workers.cluster_key import read_key
from outrider.workers.tracing import endpoint_in_force

_FILES = ("tls_cert", "tls_key", "tls_client_ca", "auth_token_file")


def run_gateway_command(options: GatewayOptions) -> None:
    """Runs until SIGTERM. SettingsError names an invalid option."""
    run_gateway(gateway_settings({field.name: getattr(options, field.name) for field in dataclasses.fields(options)}))


def gateway_settings(options: Mapping[str, Any]) -> GatewaySettings:
    """SettingsError names an invalid option; OutriderError a cluster key that cannot be read."""
    values = {name: value for name, value in options.items() if value is not None}
    values |= {name: Path(values[name]) for name in _FILES if name in values}
    values["http_port"] = values.get("http_port") or None  # 0: off
    key_file, endpoint = values.pop("cluster_key_file", None), values.pop("otlp_endpoint", None)
    try:
        return GatewaySettings(
            **_taken(GatewaySettings, values),
            door=Door(**_taken(Door, values)),
            limits=RequestLimits(**_taken(RequestLimits, values)),
            cluster_key=read_key(str(key_file)) if key_file is not None else "",
            otlp_endpoint=endpoint_in_force(endpoint, os.environ),
            otlp_metrics_endpoint=endpoint_in_force(endpoint, os.environ, "METRICS"),
        )
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _taken(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:  # any dataclass
    """The values that are fields of `kind`."""
    return {field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values}
