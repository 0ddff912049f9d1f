"""Measures the lag of an event loop, since a blocked loop delays every stream."""

import asyncio
from collections import deque

_EVERY_S = 0.1
_WINDOW = 600  # number of samples: a minute


class LoopLag:
    """The lag of one event loop."""

    def __init__(self) -> None:
        self._lags: deque[float] = deque(maxlen=_WINDOW)

    @property
    def longest_s(self) -> float:
        """The longest lag within the last minute."""
        return max(self._lags, default=0.0)

    async def watch(self) -> None:
        """Samples the lag until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            self._lags.append(max(0.0, loop.time() - due))
