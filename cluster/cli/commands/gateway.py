"""`outrider gateway`: converts the command's options to a gateway's settings."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from outrider.cluster.api.errors import SettingsError
from outrider.cluster.gateway.settings import GatewaySettings
from outrider.workers.serving.observability.tracing import resolve_endpoint
from outrider.workers.serving.rpc.cluster_key import read_key


def gateway_settings(given: Mapping[str, Any]) -> GatewaySettings:
    """`given`: None for options that were not given.

    Raises SettingsError, which names an invalid option, or OutriderError if the cluster key cannot be read.
    """
    try:
        settings = GatewaySettings(**{name: value for name, value in given.items() if value is not None})
        endpoint = resolve_endpoint(settings.otlp_endpoint, os.environ)
        metrics_endpoint = resolve_endpoint(settings.otlp_endpoint, os.environ, "METRICS")
    except ValueError as error:
        raise SettingsError(str(error)) from error
    key = read_key(str(settings.cluster_key_file)) if settings.cluster_key_file is not None else ""
    return dataclasses.replace(
        settings, otlp_endpoint=endpoint, otlp_metrics_endpoint=metrics_endpoint, cluster_key=key
    )
