"""outrider serves DeepSeek-R1/V3-family models, drafted by their own MTP module, with zero difference in the text.

The names below load on first use, so that importing outrider costs nothing: neither torch nor gRPC.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outrider.cluster.client.async_client import AsyncClient as AsyncClient
    from outrider.cluster.client.client import Client as Client
    from outrider.cluster.client.security import ClientSecurity as ClientSecurity
    from outrider.workers.llm import LLM as LLM
    from outrider.workers.types.errors import OutriderError as OutriderError
    from outrider.workers.types.requests.sampling_params import SamplingParams as SamplingParams
    from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams as StructuredOutputsParams
    from outrider.workers.types.requests.tools import Tool as Tool

__version__ = "0.1.0"

_HOMES = {
    "LLM": "outrider.workers.llm",
    "SamplingParams": "outrider.workers.types.requests.sampling_params",
    "StructuredOutputsParams": "outrider.workers.types.requests.structured_outputs",
    "Tool": "outrider.workers.types.requests.tools",
    "OutriderError": "outrider.workers.types.errors",
    "Client": "outrider.cluster.client.client",
    "AsyncClient": "outrider.cluster.client.async_client",
    "ClientSecurity": "outrider.cluster.client.security",
}
__all__ = [
    "LLM",
    "AsyncClient",
    "Client",
    "ClientSecurity",
    "OutriderError",
    "SamplingParams",
    "StructuredOutputsParams",
    "Tool",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'outrider' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
