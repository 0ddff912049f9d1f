"""A served model, from this process: Ray, the controller with its ranks, and a gateway. Started, watched, ended.

`outrider serve` and `outrider demo` both run on this. Whatever happens in between, `close` leaves nothing running.
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
from outrider.cluster.controller.bootstrap import ask, start_controller
from outrider.cluster.controller.charge import Charge
from outrider.cluster.controller.leftovers import remove_controller, remove_leftovers
from outrider.cluster.controller.names import controller_name
from outrider.cluster.controller.reconcile import Phase
from outrider.cluster.controller.report import Report
from outrider.cluster.controller.watch import ControllerDiedError, ControllerSilentError, ControllerWatch
from outrider.cluster.gateway.access.settings import AccessSettings
from outrider.cluster.gateway_process import GatewayProcess, check_port, free_port
from outrider.cluster.planning.shard_plan import make_plan
from outrider.cluster.ray_session import RaySession, import_ray
from outrider.workers.config import resolve_model
from outrider.workers.serving.cluster_key import draw_key, read_key
from outrider.workers.serving.tracing import open_tracing
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model_config import ModelConfig

log = logging.getLogger("outrider.serve")
HEARTBEAT_S = 0.5
ANSWER_TIMEOUT_S = 10.0
RESTART_TIMEOUT_S = 60.0  # for Ray to start a controller again that crashed
DRAIN_TIMEOUT_S = 15.0

OnReport = Callable[[Report], None]


def make_charge(settings: ServeSettings) -> Charge:
    """What the controller is to run. OutriderError if the model is unknown or cannot be split that way, or spans cannot
    be sent."""
    engine = settings.engine
    path = resolve_model(engine.model)
    otlp_endpoint = settings.spans_go_to(os.environ)
    open_tracing(otlp_endpoint, settings.name).close()  # better known now than from a rank
    try:
        model = ModelConfig.load(path)
        plan = make_plan(model, engine, engine.speculation, engine.num_redundant_experts)
    except ValueError as error:
        raise OutriderError(str(error)) from error
    return Charge(
        cluster=settings.name,
        model_name=path.name,
        model_path=str(path),
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
        otlp_endpoint=otlp_endpoint,
    )


class Heartbeat:
    """Tells a controller, from a thread, that its owner is alive: the owner may wait for long, and is silent then."""

    def __init__(self, controller: Any) -> None:  # a Ray handle
        self._controller = controller
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        ray = import_ray()
        while not self._stop.wait(HEARTBEAT_S):
            # An answer that does not come, or an error, is for the owner's own questions to find.
            with contextlib.suppress(ray.exceptions.RayError):
                ray.wait([self._controller.heartbeat.remote()], timeout=HEARTBEAT_S)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


class ServedCluster:
    """One cluster. `start`, then `check` now and then, then `close`, from one thread; `stop` and `hurry` from any."""

    def __init__(self, settings: ServeSettings, charge: Charge, *, dashboard: bool, log_level: str) -> None:
        self.stop = threading.Event()  # set: end soon
        self.hurry = threading.Event()  # set: do not wait for running requests
        self._settings, self._charge, self._log_level = settings, charge, log_level
        self._session = RaySession(settings.ray_address, dashboard=dashboard, keep_logs=log_level == "debug")
        self._connected = False
        self._controller: Any = None
        self._heartbeat: Heartbeat | None = None
        self._watch: ControllerWatch | None = None  # once the cluster was ready
        self._gateway: GatewayProcess | None = None

    @property
    def address(self) -> str:
        """HOST:PORT of the gateway, once started."""
        assert self._gateway is not None
        return self._gateway.address

    @property
    def http_url(self) -> str:
        """Of the gateway's HTTP; "" without."""
        settings = self._settings
        scheme = "http" if settings.access.tls is None else "https"
        return f"{scheme}://{settings.http_host or settings.host}:{settings.http_port}" if settings.http_port else ""

    @property
    def dashboard_url(self) -> str:
        return self._session.dashboard_url

    def start(self, on_report: OnReport) -> bool:
        """Brings everything up. False if `stop` was set meanwhile; OutriderError says what went wrong."""
        port = self._port()
        self._session.open()
        self._connected = True
        self._take_name()
        settings = self._settings
        self._gateway = GatewayProcess(
            controller=self._start_controller(),
            host=settings.host,
            port=port,
            metrics_port=settings.metrics_port,
            http_port=settings.http_port,
            http_host=settings.http_host,
            access=self._access(),
            cluster_key=self._charge.key,
            log_level=self._log_level,
            otlp_endpoint=self._charge.otlp_endpoint,
            arguments=settings.gateway_arguments(),
        )
        report = self._wait_for_ranks(on_report)
        self._gateway.wait_until_ready(self.stop)
        if report is not None:
            ask = functools.partial(self._ask, "heartbeat", timeout_s=ANSWER_TIMEOUT_S)
            self._watch = ControllerWatch(ask, self._start_another, report)
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
        """With a plain port for health checks where the gateway's own speaks TLS: readiness is asked there."""
        access, host = self._settings.access, self._settings.host
        if access.health_port is not None:
            check_port(host, access.health_port, "--health-port")
        plain_needed = access.tls is not None or access.health_port == 0
        return (
            dataclasses.replace(access, health_port=access.health_port or free_port(host)) if plain_needed else access
        )

    def _take_name(self) -> None:
        """Takes over, or removes, what a killed run left under our name; refuses to touch what is alive."""
        ray = import_ray()
        name = self._settings.name
        try:
            earlier = ray.get_actor(controller_name(name))
            alive = ask(earlier, "owner_alive", timeout_s=ANSWER_TIMEOUT_S)
        except (ValueError, ray.exceptions.RayError):
            alive = False
        if alive:
            raise self._name_taken()
        if self._settings.take_over and self._goes_on():
            remove_controller(name)
            return
        for what in remove_leftovers(name):
            log.warning("removed %s, left by an earlier run", what)

    def _goes_on(self) -> bool:
        """Whether replicas of an earlier run can go on under our settings; says so either way, if there are any."""
        before = record.load(self._settings.name)
        if before is None or not before.survivors:
            return False
        names = ", ".join(one.name for one in before.survivors)
        if before.identity != self._charge.identity:
            log.warning("replicas %s of an earlier run were told otherwise than this one: they are replaced", names)
            return False
        log.warning("going on with replicas %s of an earlier run", names)
        return True

    def _name_taken(self) -> OutriderError:
        name = self._settings.name
        return OutriderError(f"a cluster named {name!r} is being served already: stop it, or choose another --name")

    def _start_controller(self) -> str:
        charge = dataclasses.replace(self._charge, may_grow=not self._session.is_own)
        try:
            self._controller = start_controller(charge)
        except ValueError as error:  # somebody else was faster
            raise self._name_taken() from error
        self._heartbeat = Heartbeat(self._controller)
        return str(self._ask("open", timeout_s=RESTART_TIMEOUT_S))

    def _start_another(self) -> None:
        """In the place of a controller that is no more; it goes on from the record, at the same address."""
        ray = import_ray()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        try:
            remove_controller(self._settings.name)
            self._start_controller()
        except ray.exceptions.RayError as error:
            raise OutriderError(" ".join(str(error).split())) from error

    def _wait_for_ranks(self, on_report: OnReport) -> Report | None:
        """Until the replicas that have room are ready, and one is; None if `stop` was set before."""
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
        """How things stand. Until the cluster is ready, OutriderError if the controller or the gateway is gone."""
        if self._gateway is not None:
            self._gateway.check()
        if self._watch is not None:
            return self._watch.report()
        report: Report = self._ask("heartbeat", timeout_s=RESTART_TIMEOUT_S)
        return report

    def _ask(self, method: str, *, timeout_s: float) -> Any:  # as Ray's own get
        ray = import_ray()
        try:
            return ask(self._controller, method, timeout_s=timeout_s)
        except (ray.exceptions.GetTimeoutError, ray.exceptions.ActorUnavailableError) as error:
            raise ControllerSilentError(f"the controller did not answer within {timeout_s:.0f} s") from error
        except ray.exceptions.RayTaskError as error:
            raise OutriderError(" ".join(str(error.cause).split())) from error
        except ray.exceptions.RayActorError as error:
            raise ControllerDiedError("the controller died: see its log in Ray's session directory") from error
        except ray.exceptions.RayError as error:
            raise ControllerSilentError(f"Ray cannot ask the controller: {type(error).__name__}") from error

    def close(self) -> None:
        """Gateway first, then the ranks, then what may be left, then Ray if it was started here."""
        if self._gateway is not None:
            self._gateway.close(self.hurry)
        if self._controller is not None:
            self._end_ranks()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if self._connected:
            self._session.close()

    def _end_ranks(self) -> None:
        try:
            self._ask("drain", timeout_s=DRAIN_TIMEOUT_S)
        except OutriderError as error:
            log.warning("%s: its ranks are ended without it", error)
        if not self._session.is_own:
            remove_leftovers(self._settings.name)
