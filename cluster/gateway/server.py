"""A gateway: creates its servers and connections, starts them and drains them."""

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable

import grpc

from outrider.cluster.api.endings import is_hang
from outrider.cluster.api.health import Health
from outrider.cluster.gateway.http.app import HttpApi
from outrider.cluster.gateway.http.server import HttpServer
from outrider.cluster.gateway.listen import Listeners
from outrider.cluster.gateway.observability.known_metrics import KnownMetrics
from outrider.cluster.gateway.observability.loop_lag import LoopLag
from outrider.cluster.gateway.observability.metrics import GatewayMetrics, serve_metrics
from outrider.cluster.gateway.requests.admission import Admission
from outrider.cluster.gateway.requests.inference import Inference
from outrider.cluster.gateway.requests.prompts import PromptEncoder
from outrider.cluster.gateway.routing.controller_link import ClusterServicer, ControllerLink
from outrider.cluster.gateway.routing.fleet import Fleet
from outrider.cluster.gateway.service import InferenceServicer
from outrider.cluster.gateway.settings import GatewaySettings
from outrider.proto import cluster_pb2_grpc, inference_pb2_grpc
from outrider.workers.serving.observability.tracing import open_tracing
from outrider.workers.types import logs
from outrider.workers.types.errors import CheckpointError, OutriderError

log = logging.getLogger("outrider.gateway")

_RETRY_S = 1.0
_ENGINES_EVERY_S, _ENGINES_TIMEOUT_S = 2.0, 1.0  # how often engines' counters are read for metrics
TRACED_AS = "outrider-gateway"  # service name in spans
_LAST_WORDS_S = 2.0


class Gateway:
    """One gateway. Call `start`, then `drain`. One event loop."""

    def __init__(self, settings: GatewaySettings, on_failure: Callable[[], None] = lambda: None) -> None:
        """`on_failure`: called when the gateway cannot continue; `failure` then has the reason.

        Raises OutriderError if the token file is invalid or spans cannot be sent.
        """
        self.settings = settings
        self.failure = ""
        self._on_failure = on_failure
        self.metrics = GatewayMetrics()
        self._known_metrics = KnownMetrics(self.metrics.registry, settings.otlp_metrics_endpoint, TRACED_AS)
        self.metrics_port = self.http_port = 0
        self._changed = asyncio.Event()
        self._health = Health()
        self._lag = LoopLag()
        self._listeners = Listeners(settings.access, self._health, self.metrics, settings.limits.max_message_bytes)
        self._controller = ControllerLink(settings.controller, settings.cluster_key)
        self._admission = Admission(settings.admission)
        self._fleet = Fleet(self._fleet_changed, settings.reason_wait_s, settings.cluster_key, self._count_ended)
        self._tracing = open_tracing(settings.otlp_endpoint or "", TRACED_AS)
        self._inference = Inference(
            self._admission,
            self._fleet,
            self.metrics,
            self._known_metrics,
            settings.limits,
            settings.resume_wait_s,
            self._tracing,
            share_prefix_cache=settings.share_prefix_cache,
        )
        self.servicer = InferenceServicer(self._inference, settings.write_timeout_s)
        self._tasks: list[asyncio.Task[None]] = []
        self._closers = contextlib.ExitStack()
        self._http = self._make_http() if settings.http_port else None

    def _make_http(self) -> HttpServer:
        settings = self.settings
        api = HttpApi(
            self._inference,
            lambda: self.ready,
            self.metrics.registry,
            self._controller,
            self._listeners.authenticator,
            settings.limits.max_message_bytes,
            settings.write_timeout_s,
        )
        return HttpServer(api.app(), settings.access.tls)

    def _count_ended(self, reason: str) -> None:
        self.metrics.ended_replicas.labels(cause="stalled" if is_hang(reason) else "other").inc()

    def _fleet_changed(self) -> None:
        self._admission.set_places(self._fleet.places)
        self._note_change()

    def _note_change(self) -> None:
        self._changed.set()
        self._inference.note_change()

    @property
    def port(self) -> int:
        return self._listeners.port

    @property
    def health_port(self) -> int:
        """Port of the listener without TLS; 0 if there is none."""
        return self._listeners.health_port

    @property
    def live_requests(self) -> int:
        return self._inference.live_requests

    @property
    def ready(self) -> bool:
        return self._inference.encoder is not None and not self._inference.draining and self._fleet.ready > 0

    async def start(self) -> None:
        """Starts to listen. Ready when the controller has published a replica. OutriderError if a port is in use."""
        settings, server = self.settings, self._listeners.server
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self.servicer, server)
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(
            ClusterServicer(self._controller, self._fleet, self.metrics), server
        )
        await self._health.set_ready(False)
        for host in dict.fromkeys((settings.host, settings.http_host or settings.host)):
            if weakness := settings.access.weakness(host):
                logs.event(log, logging.WARNING, "access is not restricted", reason=weakness)
        if settings.metrics_port is not None:
            self.metrics_port, stop = serve_metrics(self.metrics.registry, settings.host, settings.metrics_port)
            self._closers.callback(stop)
        await self._listeners.start(settings.host, settings.port)
        if self._http is not None:
            self.http_port = await self._http.start(settings.http_host or settings.host, settings.http_port)
        self.metrics.controller_connected.set_function(lambda: self._controller.connected)
        self.metrics.loop_lag.set_function(lambda: self._lag.longest_s)
        work = (
            self._controller.watch(self._fleet.apply),
            self._learn_model(),
            self._report_health(),
            self._watch_engines(),
            self._controller.report_waiting(lambda: self._admission.waiting),
            self._lag.watch(),
        )
        self._tasks = [asyncio.create_task(one) for one in work]
        for task in self._tasks:
            task.add_done_callback(self._note_end)
        addresses = {"address": f"{settings.host}:{self.port}", "controller": settings.controller}
        if self._http is not None:
            addresses["http"] = f"{settings.http_host or settings.host}:{self.http_port}"
        logs.event(log, logging.INFO, "gateway listens", **addresses)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.failure:
            self.failure = f"the gateway cannot continue: {type(error).__name__}: {error}"
            log.debug("a task failed", exc_info=error)
            self._on_failure()

    async def drain(self) -> None:
        """Refuses new requests, waits for running ones until a timeout, ends the rest with an error, and stops."""
        logs.event(log, logging.INFO, "gateway drains", live_requests=self.live_requests)
        self._inference.draining = True
        self._note_change()
        if not await self._idle_within(self.settings.drain_grace_s):
            self._inference.fail_all("the gateway shut down before the request finished: send it again")
            await self._idle_within(_LAST_WORDS_S)
        await self.close()

    async def close(self) -> None:
        """Stops immediately and cancels live requests."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._http is not None:
            await self._http.stop()
        await self._listeners.stop(grace_s=0.5)
        if self._inference.encoder is not None:
            self._inference.encoder.close()
        await self._fleet.close()
        await self._controller.close()
        await asyncio.to_thread(self._closers.close)
        await asyncio.gather(*(asyncio.to_thread(one.close) for one in (self._tracing, self._known_metrics)))
        logs.event(log, logging.INFO, "gateway stopped")

    async def _idle_within(self, seconds: float) -> bool:
        until = asyncio.get_running_loop().time() + seconds
        while self.live_requests and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.02)
        return self.live_requests == 0

    async def _learn_model(self) -> None:
        """Gets the model once a replica is ready, since the controller does not know it before."""
        while self._inference.encoder is None:
            if self._fleet.ready and not await self._try_to_learn_model():
                await asyncio.sleep(_RETRY_S)
            await asyncio.sleep(0.02)

    async def _try_to_learn_model(self) -> bool:
        try:
            model = await self._controller.get_model()
            self._inference.encoder = await asyncio.to_thread(PromptEncoder.load, model.path)
            self._inference.model_name = model.name
            self._note_change()
            logs.event(log, logging.INFO, "model known", model=model.name, fingerprint=model.fingerprint)
        except (grpc.aio.AioRpcError, CheckpointError) as error:
            reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
            logs.event(log, logging.ERROR, "cannot get the model", reason=reason)
        return self._inference.encoder is not None

    async def _watch_engines(self) -> None:
        while True:
            counters = await self._fleet.counters(_ENGINES_TIMEOUT_S)
            self._known_metrics.show(counters, self._inference.model_name, self._admission.queued_requests)
            await asyncio.sleep(_ENGINES_EVERY_S)

    async def _report_health(self) -> None:
        while True:
            self._changed.clear()
            await self._health.set_ready(self.ready)
            await self._changed.wait()


def run_gateway(settings: GatewaySettings) -> int:
    """Serves until SIGTERM or SIGINT, drains, and returns the exit status.

    Raises OutriderError if a port is in use, or after a failure that the gateway cannot recover from.
    """
    asyncio.run(_run(settings))
    return 0


async def _run(settings: GatewaySettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if settings.end_with_stdin:
        watch = threading.Thread(target=_wait_for_stdin, args=(loop, stop), name="stdin", daemon=True)
        watch.start()
    gateway = Gateway(settings, stop.set)
    try:
        await gateway.start()
    except OutriderError:
        await gateway.close()
        raise
    await stop.wait()
    await gateway.drain()
    if gateway.failure:
        raise OutriderError(gateway.failure)


def _wait_for_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(0, 4096):  # not sys.stdin, whose lock a daemon thread would hold at exit
        continue
    with contextlib.suppress(RuntimeError):  # the loop is closed: the gateway is already ending
        loop.call_soon_threadsafe(stop.set)
