"""The leader's loop: schedule, forward, verify, commit, draft; round after round until stopped.

Owns the scheduler and the drafter, and runs in one thread. Everybody else talks to it through its inbox; what
sequences gain is delivered once a round to whoever submitted them.
"""

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from outrider.workers.depth.policy import DepthPolicy
from outrider.workers.drafting.drafter import Drafter, DrafterError
from outrider.workers.engine.handle import Deliver, EngineInfo
from outrider.workers.engine.inbox import Call, Cancel, Checked, GrammarPrepared, Inbox, Message, StopEngine, Submit
from outrider.workers.engine.live_experts import Longest
from outrider.workers.engine.pipeline import Pipeline, RoundResult
from outrider.workers.engine.progress import Progress
from outrider.workers.engine.round_timer import RoundTimer
from outrider.workers.engine.runner import Naming
from outrider.workers.engine.scheduler import Scheduler
from outrider.workers.engine.subscribers import Subscribers
from outrider.workers.engine.suspects import Suspects
from outrider.workers.engine.warm_up import WarmUp, first_use, measuring
from outrider.workers.experts.balance import ExpertBalance
from outrider.workers.types.counters import EngineCounters
from outrider.workers.types.drafts import Drafts
from outrider.workers.types.errors import EngineStoppedError, OutriderError
from outrider.workers.types.request import Request, SequenceChunk
from outrider.workers.types.round import Round
from outrider.workers.types.structured_outputs import StructuredOutputsParams

log = logging.getLogger("outrider.engine")
Prepare = Callable[[StructuredOutputsParams], "Future[Any]"]


class Engine:
    """Implements EngineHandle for one replica. `run` belongs to one thread; the other methods are thread-safe."""

    def __init__(
        self,
        *,
        info: EngineInfo,
        scheduler: Scheduler,
        pipeline: Pipeline,
        drafter: Drafter | None,
        depth: DepthPolicy,
        load_module: Callable[[str], Callable[[], None]] | None = None,
        balance: ExpertBalance | None = None,
        clock: Callable[[], float] = time.perf_counter,
        on_begin: Callable[[Sequence[str]], None] = lambda request_ids: None,
        check: Prepare | None = None,
        prepare: Prepare | None = None,
    ) -> None:
        """`load_module` reads a checkpoint's MTP module, and returns what puts it in the place of the drafter's.

        `balance` keeps spread experts even, where there are any. `clock` times the rounds that depths are learned from;
        `on_begin` hears which requests have an output's first round, before it is computed; `check` finds out whether
        ranks may compile a grammar, and `prepare` starts to, both elsewhere than in the engine's thread.
        """
        self.info = info
        self.times = RoundTimer(clock, overlapping=pipeline.lanes > 1)
        self.progress = Progress()
        self.ordering = Longest()  # a round, by the making of an order about experts
        self._scheduler, self._pipeline, self._drafter, self._depth = scheduler, pipeline, drafter, depth
        self._load_module, self._balance = load_module, balance
        self._clock, self._on_begin = clock, on_begin
        self._check, self._prepare, self._to_prepare = check, prepare, list[StructuredOutputsParams]()
        self._checks: dict[str, Future[Any]] = {}  # that are under way, by request
        self._inbox = Inbox()
        self._suspects = Suspects(scheduler.release)
        self._subscribers = Subscribers()
        self._free_lanes: deque[int] = deque(range(pipeline.lanes))
        self._under_way: deque[Round] = deque()  # oldest first
        self._stop_reason = ""
        self._ended = ""  # why; set once, behind the door, so that no request slips in unanswered
        self._door = threading.Lock()

    def submit(self, request: Request, deliver: Deliver) -> None:
        """See EngineHandle. Also ValueError if this engine's cache could never hold the request."""
        self._scheduler.check(request)
        with self._door:
            if self._ended:
                raise EngineStoppedError(self._ended)
            self._inbox.put(Submit(request, deliver))

    def cancel(self, request_id: str, index: int | None = None) -> None:
        self._inbox.put(Cancel(request_id, index))

    def stop(self, reason: str) -> None:
        """Makes `run` return after the rounds in flight; unfinished requests end with `reason`."""
        self._inbox.put(StopEngine(reason))

    def swap_drafter(self, checkpoint: str) -> None:
        """See EngineHandle. The module is read in the caller's thread; rounds wait for its putting in place only."""
        if self._load_module is None:
            raise OutriderError("this engine does not draft with an MTP module: there is none to swap")
        put_in_place = self._load_module(checkpoint)

        def swap() -> None:
            put_in_place()
            self._depth.begin()  # what was learned of drafts is the old module's

        call = Call(swap, Future())
        with self._door:
            if self._ended:
                raise EngineStoppedError(self._ended)
            self._inbox.put(call)
        call.done.result()

    @property
    def counters(self) -> EngineCounters:
        """The live counters, with how speculation and experts do. Written by the engine's thread only."""
        counters = self._scheduler.counters
        counters.speculation = self._depth.figures
        if self._balance is not None:
            counters.experts = self._balance.figures
        return counters

    def warm_up(self) -> None:
        """Runs some small requests, before `run`. What rounds take is learned, and nothing else is kept of them.

        The first round of a client says that their sequences have ended.
        """
        vocab_size, longest = self.info.vocab_size, self.info.max_model_len
        self._warm_up(first_use(vocab_size, longest))
        self._depth.begin(keep_times=False)
        if self._drafter is not None and (model := self._depth.priced_model):
            for each in measuring(vocab_size, longest, self._scheduler.most_together, model):
                self._warm_up(each)
            self._depth.begin()
        self._scheduler.reset_counters()
        self.times = RoundTimer(self._clock, overlapping=self._pipeline.lanes > 1)

    def _warm_up(self, one: WarmUp) -> None:
        """Until it ends by itself, or has had its rounds."""
        self._subscribers.add(one.request, lambda chunks: None)
        self._scheduler.add(one.request)
        counters, began = self._scheduler.counters, None  # the rounds before all had read the prompt
        said = counters.generated_tokens + one.request.params.n
        while self._scheduler.has_work:
            self.step()
            if began is None and counters.generated_tokens >= said:
                began = self.times.rounds
            elif began is not None and self.times.rounds == began + one.rounds * self._pipeline.lanes:
                self._subscribers.deliver(self._scheduler.cancel(one.request.request_id))

    def run(self) -> None:
        """Serves until stopped. Whatever ends it otherwise is raised once every client has been told."""
        try:
            while not self._stop_reason:
                self._read_inbox()
                self.step()
            while self._under_way:  # the other stages wait to hand their verdicts over
                self._finish_round()
            self._end(self._stop_reason)
            self._pipeline.close()
        except EngineStoppedError as error:
            self._end(str(error))
            raise
        except Exception as error:
            self._end(f"the engine failed: {type(error).__name__}: {error}")
            raise

    def step(self) -> None:
        """Starts a round if a lane is free and a sequence is ready, else finishes the oldest under way."""
        started = self._start_round()
        self._subscribers.deliver(())  # what was held, while a device runs the round
        if not started and self._under_way:
            self._finish_round()

    def _read_inbox(self) -> None:
        """Takes every message; sleeps while there is nothing at all to do."""
        idle = not self._under_way and not self._scheduler.has_work
        if idle:
            self.times.idle()
            self.progress.idle()
        messages = self._inbox.take(sleep=idle)
        self.progress.busy()
        for message in messages:
            self._handle(message)

    def _handle(self, message: Message) -> None:
        match message:
            case Submit(request, deliver):
                self._subscribers.add(request, deliver)
                self._add(request)
            case Checked():
                self._take_check(message)
            case GrammarPrepared(request, None):
                self._begin(request)
            case GrammarPrepared(request, error):
                reason = f"structured_outputs cannot be followed: {error}"
                self._deliver(self._scheduler.refuse(request.request_id, reason))
            case Cancel(request_id, index):
                if request_id in self._checks and index is None:
                    self._checks.pop(request_id).cancel()
                self._deliver(self._scheduler.cancel(request_id, index))
            case StopEngine(reason):
                self._stop_reason = reason
            case Call():
                message.run()

    def _add(self, request: Request) -> None:
        """Queues the request; if it has a grammar, to begin once that can be followed without delay."""
        constraint = request.params.structured_outputs
        self._scheduler.add(request, ready=False)
        if constraint is None or self._prepare is None:
            self._begin(request)
            return
        if self._check is None:
            self._compile(request, constraint)
            return
        check = self._checks[request.request_id] = self._check(constraint)
        check.add_done_callback(functools.partial(self._checked, request, constraint))

    def _begin(self, request: Request) -> None:
        """Nothing but its turn keeps the request waiting now."""
        if request.suspect:
            self._suspects.wait(request.request_id)
        else:
            self._scheduler.release(request.request_id)

    def _deliver(self, chunks: Sequence[SequenceChunk], *, may_wait: bool = False) -> None:
        """`may_wait`: until the next round has started, if a device runs it while the host delivers."""
        waits = may_wait and self._pipeline.returns_early and self._scheduler.has_work
        (self._subscribers.hold if waits else self._subscribers.deliver)(chunks)
        self._suspects.hear(chunks)

    def _checked(self, request: Request, constraint: StructuredOutputsParams, check: "Future[Any]") -> None:
        """In whatever thread the check was made, or cancelled."""
        if not check.cancelled():
            self._inbox.put(Checked(request, constraint, check.exception()))

    def _take_check(self, checked: Checked) -> None:
        self._checks.pop(checked.request.request_id, None)
        if checked.error is None:
            self._compile(checked.request, checked.constraint)
        else:
            self._deliver(self._scheduler.refuse(checked.request.request_id, str(checked.error)))

    def _compile(self, request: Request, constraint: StructuredOutputsParams) -> None:
        assert self._prepare is not None
        self._to_prepare.append(constraint)
        self._prepare(constraint).add_done_callback(
            lambda done: self._inbox.put(GrammarPrepared(request, done.exception()))
        )

    def _start_round(self) -> bool:
        if not self._free_lanes:
            return False
        self.times.begin()
        round = self._scheduler.schedule(self._free_lanes[0])
        if not round.sequences:
            self._announce()
            return False
        self.times.scheduled()
        self._under_way.append(round := self._addressed(round))
        self._free_lanes.popleft()
        self.times.lap("schedule")
        self.progress.began(round.round_id, len(round.token_ids))
        self._pipeline.dispatch(round)
        self.times.lap("forward")
        return True

    def _addressed(self, round: Round) -> Round:
        """The round with what else the ranks are to do: compile grammars, move experts."""
        begin = [self._scheduler.live(start.sequence_id) for start in round.begins]
        if begin:
            self._on_begin([sequence.request.request_id for sequence in begin if sequence is not None])
        if self._to_prepare:
            round, self._to_prepare = replace(round, prepares=tuple(self._to_prepare)), []
        if self._balance is not None:
            with self.ordering.timing():
                order = self._balance.order()
            round = replace(round, expert_order=order) if len(order) else round
        return round

    def _announce(self) -> None:
        """What the next round would have told the sampler to prepare: there is none to tell it with."""
        if self._to_prepare:
            self._pipeline.announce(tuple(self._to_prepare))
            self._to_prepare = []

    def _finish_round(self) -> None:
        """Takes the oldest round's verdict: its tokens go out, and the next drafts are made."""
        result = self._pipeline.collect()
        round, verdict = self._under_way.popleft(), result.verdict
        if self._balance is not None:
            self._balance.observe(verdict.expert_answer)
        time = self._depth.time_of(round, self.times.judged())
        self._deliver(self._scheduler.commit(round, verdict, time), may_wait=True)
        self.times.delivered()
        drafts = self._draft(round, result)
        self.times.drafted()
        verified = self._depth.observe(round, verdict, self.times.round_s, self.times.draft_s, drafts)
        if verified:
            self._scheduler.set_drafts(verified)
        self._free_lanes.append(round.lane)
        self.progress.finished(round.round_id, len(round.token_ids))
        self.times.finished()

    def _draft(self, round: Round, result: RoundResult) -> Mapping[int, Drafts]:
        """The next drafts; none if the drafter fails, which costs speed and nothing else."""
        if self._drafter is None or not round.upkeep.size:
            return {}
        try:
            if len(round.ends):
                self._drafter.forget(round.ends)
            with Naming(round):
                return self._drafter.draft(round, result.verdict, result.hidden)
        except EngineStoppedError:  # another rank was lost, and with it the replica
            raise
        except Exception as error:
            self._scheduler.unfollow()  # what was to be taken in is lost: the drafter's cache has a hole
            for each in error.exceptions if isinstance(error, ExceptionGroup) else [error]:
                self._drafter_failed(each, round.round_id)
            return {}

    def _drafter_failed(self, error: Exception, round_id: int) -> None:
        """Counts it, and says it where it is news."""
        named = error if isinstance(error, DrafterError) else DrafterError(type(self._drafter).__name__, error)
        if self._depth.failed(named.drafter, str(named)):
            log.error("drafter %s failed in round %d; going on without", named.drafter, round_id, exc_info=named)

    def _end(self, reason: str) -> None:
        """From here on nothing is served: live requests and those still in the inbox get the reason."""
        with self._door:
            self._ended = reason
        self._subscribers.deliver(self._scheduler.fail(reason))
        for message in self._inbox.take(sleep=False):
            if isinstance(message, Submit):
                self._subscribers.add(message.request, message.deliver)
            elif isinstance(message, Call):
                message.done.set_exception(EngineStoppedError(reason))
        self._subscribers.end_all(reason)
