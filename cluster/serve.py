"""Starts, monitors and stops a served model: Ray, the controller with its ranks, and a gateway.

Used by `outrider serve` and `outrider demo`. `close` stops everything, whatever failed before.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from outrider.cluster.config import ServeSettings
from outrider.cluster.controller import record
from outrider.cluster.controller.bootstrap import call_controller, start_controller
from outrider.cluster.controller.cluster_spec import ClusterSpec
from outrider.cluster.controller.leftovers import remove_controller, remove_leftovers
from outrider.cluster.controller.names import controller_name
from outrider.cluster.controller.reconcile import Phase
from outrider.cluster.controller.replicas.report import Report
from outrider.cluster.controller.watch import ControllerDiedError, ControllerSilentError, ControllerWatch
from outrider.cluster.gateway.access.settings import AccessSettings
from outrider.cluster.gateway_process import GatewayProcess, check_port, free_port
from outrider.cluster.planning.shard_plan import make_plan
from outrider.cluster.ray_session import RaySession, import_ray
from outrider.workers.config import resolve_model
from outrider.workers.serving.observability.tracing import open_tracing
from outrider.workers.serving.rpc.cluster_key import draw_key, read_key
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model import hub
from outrider.workers.types.model.model_config import ModelConfig

log = logging.getLogger("outrider.serve")
HEARTBEAT_S = 0.5
ANSWER_TIMEOUT_S = 10.0
RESTART_TIMEOUT_S = 60.0  # for Ray to restart a crashed controller
DRAIN_TIMEOUT_S = 15.0

OnReport = Callable[[Report], None]


def make_cluster_spec(settings: ServeSettings) -> ClusterSpec:
    """The controller's specification, from settings.

    Raises OutriderError if the model is unknown or cannot be split as configured, or if spans cannot be sent.
    """
    engine = settings.engine
    path = resolve_model(engine.model, weights=False)
    named, location = path.name, str(path)
    if hub.is_on_hub(engine.model):
        # Every rank and gateway fetches the commit that this process found.
        named, location = hub.name_of(engine.model), hub.pinned(engine.model, path)
        engine = dataclasses.replace(engine, model=location)
    otlp_endpoint = settings.spans_go_to(os.environ)
    open_tracing(otlp_endpoint, settings.name).close()  # an error now is clearer than one from a rank
    try:
        model = ModelConfig.load(path)
        plan = make_plan(model, engine, engine.speculation, engine.num_redundant_experts)
    except ValueError as error:
        raise OutriderError(str(error)) from error
    return ClusterSpec(
        cluster=settings.name,
        model_name=named,
        model_path=location,
        engine=engine,
        plan=plan,
        key=read_key(str(settings.cluster_key_file)) if settings.cluster_key_file else draw_key(),
        controller_host=settings.controller_host,
        controller_port=settings.controller_port,
        leader_ports=settings.leader_port_range,
        replicas=settings.replicas,
        drain_grace_s=settings.drain_grace_s,
        ranks_per_node=settings.ranks_per_node,
        autoscale=settings.autoscale,
        kubernetes_ray_cluster=settings.kubernetes_ray_cluster,
        kubernetes_worker_group=settings.kubernetes_worker_group,
        kubernetes_scale_deployment=settings.kubernetes_scale_deployment,
        otlp_endpoint=otlp_endpoint,
    )


class Heartbeat:
    """Sends heartbeats to the controller from a thread, since its owner may block for a long time."""

    def __init__(self, controller: Any) -> None:  # a Ray handle
        self._controller = controller
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        ray = import_ray()
        while not self._stop.wait(HEARTBEAT_S):
            # Timeouts and errors are ignored here: the owner's own calls report them.
            with contextlib.suppress(ray.exceptions.RayError):
                ray.wait([self._controller.heartbeat.remote()], timeout=HEARTBEAT_S)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


class ServedCluster:
    """One cluster. Call `start`, `check` repeatedly, then `close`, from one thread; set the events from any thread."""

    def __init__(self, settings: ServeSettings, spec: ClusterSpec, *, dashboard: bool, log_level: str) -> None:
        self.stop = threading.Event()  # set it to end
        self.cancel_running = threading.Event()  # set it to end without waiting for running requests
        self._settings, self._spec, self._log_level = settings, spec, log_level
        self._session = RaySession(settings.ray_address, dashboard=dashboard, keep_logs=log_level == "debug")
        self._connected = False
        self._controller: Any = None
        self._heartbeat: Heartbeat | None = None
        self._watch: ControllerWatch | None = None  # once the cluster was ready
        self._gateway: GatewayProcess | None = None

    @property
    def address(self) -> str:
        """HOST:PORT of the gateway. Valid after `start`."""
        assert self._gateway is not None
        return self._gateway.address

    @property
    def http_url(self) -> str:
        """URL of the gateway's HTTP API; "" if it is off."""
        settings = self._settings
        scheme = "http" if settings.access.tls is None else "https"
        return f"{scheme}://{settings.http_host or settings.host}:{settings.http_port}" if settings.http_port else ""

    @property
    def dashboard_url(self) -> str:
        return self._session.dashboard_url

    def start(self, on_report: OnReport) -> bool:
        """Starts everything. False if `stop` was set before it was ready. Raises OutriderError if it fails."""
        port = self._port()
        self._session.open()
        self._connected = True
        self._claim_name()
        settings = self._settings
        self._gateway = GatewayProcess(
            controller=self._start_controller(),
            host=settings.host,
            port=port,
            metrics_port=settings.metrics_port,
            http_port=settings.http_port,
            http_host=settings.http_host,
            access=self._access(),
            cluster_key=self._spec.key,
            log_level=self._log_level,
            otlp_endpoint=self._spec.otlp_endpoint,
            arguments=settings.gateway_arguments(),
        )
        report = self._wait_for_ranks(on_report)
        self._gateway.wait_until_ready(self.stop)
        if report is not None:
            poll = functools.partial(self._call, "heartbeat", timeout_s=ANSWER_TIMEOUT_S)
            self._watch = ControllerWatch(poll, self._start_another, report)
        return not self.stop.is_set()

    def _port(self) -> int:
        settings = self._settings
        check_port(settings.host, settings.port)
        if settings.http_port:
            check_port(settings.http_host or settings.host, settings.http_port, "--http-port")
        if settings.metrics_port is not None:
            check_port(settings.host, settings.metrics_port, "--metrics-port")
        return settings.port or free_port(settings.host)

    def _access(self) -> AccessSettings:
        """The access settings. With TLS they get a plain health port, which this process uses for readiness checks."""
        access, host = self._settings.access, self._settings.host
        if access.health_port is not None:
            check_port(host, access.health_port, "--health-port")
        plain_needed = access.tls is not None or access.health_port == 0
        return (
            dataclasses.replace(access, health_port=access.health_port or free_port(host)) if plain_needed else access
        )

    def _claim_name(self) -> None:
        """Adopts or removes what a killed run left under this name. Raises OutriderError if that cluster is alive."""
        ray = import_ray()
        name = self._settings.name
        try:
            earlier = ray.get_actor(controller_name(name))
            alive = call_controller(earlier, "owner_alive", timeout_s=ANSWER_TIMEOUT_S)
        except (ValueError, ray.exceptions.RayError):
            alive = False
        if alive:
            raise self._name_in_use()
        if self._settings.take_over and self._can_adopt():
            remove_controller(name)
            return
        for what in remove_leftovers(name):
            log.warning("removed %s, left by an earlier run", what)

    def _can_adopt(self) -> bool:
        """Whether replicas of an earlier run can be adopted under the current settings. Logs which."""
        before = record.load(self._settings.name)
        if before is None or not before.survivors:
            return False
        names = ", ".join(one.name for one in before.survivors)
        if before.identity != self._spec.identity:
            log.warning("replicas %s of an earlier run have other settings: they are replaced", names)
            return False
        log.warning("adopting replicas %s of an earlier run", names)
        return True

    def _name_in_use(self) -> OutriderError:
        name = self._settings.name
        return OutriderError(f"a cluster named {name!r} is being served already: stop it, or choose another --name")

    def _start_controller(self) -> str:
        spec = dataclasses.replace(self._spec, may_grow=not self._session.is_own)
        try:
            self._controller = start_controller(spec)
        except ValueError as error:  # another process was faster
            raise self._name_in_use() from error
        self._heartbeat = Heartbeat(self._controller)
        return str(self._call("open", timeout_s=RESTART_TIMEOUT_S))

    def _start_another(self) -> None:
        """Replaces a dead controller. The new one continues from the record, at the same address."""
        ray = import_ray()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        try:
            remove_controller(self._settings.name)
            self._start_controller()
        except ray.exceptions.RayError as error:
            raise OutriderError(" ".join(str(error).split())) from error

    def _wait_for_ranks(self, on_report: OnReport) -> Report | None:
        """Waits until at least one replica is ready, and all that have resources. None if `stop` was set before."""
        while not self.stop.is_set():
            report = self.check()
            on_report(report)
            if report.phase is Phase.FAILED:
                raise OutriderError(report.problem)
            if report.phase is Phase.READY:
                return report
            self.stop.wait(HEARTBEAT_S)
        return None

    def check(self) -> Report:
        """The current report. Before the cluster is ready, raises OutriderError if the controller or gateway ended."""
        if self._gateway is not None:
            self._gateway.check()
        if self._watch is not None:
            return self._watch.report()
        report: Report = self._call("heartbeat", timeout_s=RESTART_TIMEOUT_S)
        return report

    def _call(self, method: str, *, timeout_s: float) -> Any:  # untyped, like ray.get
        ray = import_ray()
        try:
            return call_controller(self._controller, method, timeout_s=timeout_s)
        except (ray.exceptions.GetTimeoutError, ray.exceptions.ActorUnavailableError) as error:
            raise ControllerSilentError(f"the controller did not answer within {timeout_s:.0f} s") from error
        except ray.exceptions.RayTaskError as error:
            raise OutriderError(" ".join(str(error.cause).split())) from error
        except ray.exceptions.RayActorError as error:
            raise ControllerDiedError("the controller died: see its log in Ray's session directory") from error
        except ray.exceptions.RayError as error:
            raise ControllerSilentError(f"Ray cannot call the controller: {type(error).__name__}") from error

    def close(self) -> None:
        """Stops the gateway, the ranks, leftovers, and Ray if it was started here, in this order."""
        if self._gateway is not None:
            self._gateway.close(self.cancel_running)
        if self._controller is not None:
            self._end_ranks()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if self._connected:
            self._session.close()

    def _end_ranks(self) -> None:
        try:
            self._call("drain", timeout_s=DRAIN_TIMEOUT_S)
        except OutriderError as error:
            log.warning("%s: its ranks are killed instead", error)
        if not self._session.is_own:
            remove_leftovers(self._settings.name)
