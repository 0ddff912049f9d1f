"""The leader's loop: schedule, forward, verify, commit, draft; repeated until the engine is stopped.

Owns the scheduler and the drafter, and runs in one thread. Other threads send it messages through its inbox. New
tokens are delivered after each round, through the callback that was passed to `submit`.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace

from outrider.workers.depth.policy import DepthPolicy
from outrider.workers.drafting.drafter import Drafter, DrafterError
from outrider.workers.engine.execution.live_experts import LongestSpan
from outrider.workers.engine.execution.pipeline import Pipeline, RoundResult
from outrider.workers.engine.execution.runner import RoundErrorContext
from outrider.workers.engine.grammars import Grammars, Prepare
from outrider.workers.engine.handle import Deliver, EngineInfo
from outrider.workers.engine.inbox import Call, Cancel, Checked, GrammarPrepared, Inbox, Message, StopEngine, Submit
from outrider.workers.engine.progress import Progress
from outrider.workers.engine.round_timer import RoundTimer
from outrider.workers.engine.scheduling.scheduler import Scheduler
from outrider.workers.engine.scheduling.suspects import Suspects
from outrider.workers.engine.subscribers import Subscribers
from outrider.workers.engine.warm_up import WarmUp, first_use, measuring
from outrider.workers.experts.balance import ExpertBalance
from outrider.workers.types.counters import EngineCounters
from outrider.workers.types.errors import EngineStoppedError, OutriderError
from outrider.workers.types.requests.request import Request, SequenceChunk
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import Round

log = logging.getLogger("outrider.engine")


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
        """`load_module` reads a checkpoint's MTP module and returns a function that installs it in the drafter.

        `balance` moves experts to balance load (expert parallelism only). `clock` times rounds for the depth policy.
        `on_begin` is called with the ids of requests that have an output in its first round, before that round runs.
        `check`, `prepare`: see Grammars. Both work in other threads.
        """
        self.info = info
        self.times = RoundTimer(clock, overlapping=pipeline.lanes > 1)
        self.progress = Progress()
        self.ordering = LongestSpan()  # of choosing a command to move experts, which delays a round
        self._scheduler, self._pipeline, self._drafter, self._depth = scheduler, pipeline, drafter, depth
        self._load_module, self._balance = load_module, balance
        self._clock, self._on_begin = clock, on_begin
        self._inbox = Inbox()
        self._grammars = Grammars(self._inbox, check, prepare)
        self._suspects = Suspects(scheduler.release)
        self._subscribers = Subscribers()
        self._free_lanes: deque[int] = deque(range(pipeline.lanes))
        self._under_way: deque[Round] = deque()  # oldest first
        self._stop_reason = ""
        self._ended = ""  # the reason; set once, under the lock, so that later submissions are refused
        self._submit_lock = threading.Lock()

    def submit(self, request: Request, deliver: Deliver) -> None:
        """See EngineHandle. Also raises ValueError if the request does not fit in an empty cache."""
        self._scheduler.check(request)
        with self._submit_lock:
            if self._ended:
                raise EngineStoppedError(self._ended)
            self._inbox.put(Submit(request, deliver))

    def cancel(self, request_id: str, index: int | None = None) -> None:
        self._inbox.put(Cancel(request_id, index))

    def stop(self, reason: str) -> None:
        """Makes `run` return after the rounds in flight. Unfinished requests fail with `reason`."""
        self._inbox.put(StopEngine(reason))

    def swap_drafter(self, checkpoint: str) -> None:
        """See EngineHandle. The module is read in the caller's thread; the engine only waits while it is installed."""
        if self._load_module is None:
            raise OutriderError("this engine does not draft with an MTP module: there is none to swap")
        install = self._load_module(checkpoint)

        def swap() -> None:
            install()
            self._depth.begin()  # acceptance was learned from the old module's drafts

        call = Call(swap, Future())
        with self._submit_lock:
            if self._ended:
                raise EngineStoppedError(self._ended)
            self._inbox.put(call)
        call.done.result()

    @property
    def counters(self) -> EngineCounters:
        """The live counters, with the figures on speculation and experts. Written by the engine's thread only."""
        counters = self._scheduler.counters
        counters.speculation = self._depth.figures
        if self._balance is not None:
            counters.experts = self._balance.figures
        return counters

    def warm_up(self) -> None:
        """Runs small requests before `run`. Only the measured round times are kept.

        The sampler learns that their sequences have ended with the first client request's round.
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
        """Runs the request until it ends or has run its number of rounds, then cancels it."""
        self._subscribers.add(one.request, lambda chunks: None)
        self._scheduler.add(one.request)
        counters, began = self._scheduler.counters, None  # round at which all outputs had a first token
        prefilled = counters.generated_tokens + one.request.params.n
        while self._scheduler.has_work:
            self.step()
            if began is None and counters.generated_tokens >= prefilled:
                began = self.times.rounds
            elif began is not None and self.times.rounds == began + one.rounds * self._pipeline.lanes:
                self._subscribers.deliver(self._scheduler.cancel(one.request.request_id))

    def run(self) -> None:
        """Serves until stopped. On failure every unfinished request gets an error, then the exception is raised."""
        try:
            while not self._stop_reason:
                self._read_inbox()
                self.step()
            while self._under_way:  # the last stage blocks until its verdicts are received
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
        """Starts a round if a lane is free and a sequence is ready, else finishes the oldest round in flight."""
        started = self._start_round()
        self._subscribers.deliver(())  # held chunks, while the device runs the round
        if not started and self._under_way:
            self._finish_round()

    def _read_inbox(self) -> None:
        """Handles every message; blocks while the engine has no work."""
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
            case Checked(request):
                if not self._grammars.compile_checked(message):
                    self._deliver(self._scheduler.refuse(request.request_id, str(message.error)))
            case GrammarPrepared(request, None):
                self._begin(request)
            case GrammarPrepared(request, error):
                reason = f"structured_outputs cannot be followed: {error}"
                self._deliver(self._scheduler.refuse(request.request_id, reason))
            case Cancel(request_id, index):
                if index is None:
                    self._grammars.cancel_check(request_id)
                self._deliver(self._scheduler.cancel(request_id, index))
            case StopEngine(reason):
                self._stop_reason = reason
            case Call():
                message.run()

    def _add(self, request: Request) -> None:
        """Queues the request. With a grammar, it is scheduled only after the grammar is compiled."""
        self._scheduler.add(request, ready=False)
        if not self._grammars.start(request):
            self._begin(request)

    def _begin(self, request: Request) -> None:
        """Makes the request schedulable; a suspect only when no other suspect is running."""
        if request.suspect:
            self._suspects.wait(request.request_id)
        else:
            self._scheduler.release(request.request_id)

    def _deliver(self, chunks: Sequence[SequenceChunk], *, may_wait: bool = False) -> None:
        """`may_wait`: on a GPU, deliver only after the next round is launched, to overlap with it."""
        waits = may_wait and self._pipeline.returns_early and self._scheduler.has_work
        (self._subscribers.hold if waits else self._subscribers.deliver)(chunks)
        self._suspects.observe(chunks)

    def _start_round(self) -> bool:
        if not self._free_lanes:
            return False
        self.times.begin()
        round = self._scheduler.schedule(self._free_lanes[0])
        if not round.sequences:
            self._announce()
            return False
        self.times.scheduled()
        self._under_way.append(round := self._with_orders(round))
        self._free_lanes.popleft()
        self.times.lap("schedule")
        self.progress.began(round.round_id, len(round.token_ids))
        self._pipeline.dispatch(round)
        self.times.lap("forward")
        return True

    def _with_orders(self, round: Round) -> Round:
        """Adds commands for the ranks to the round: compile grammars, move experts."""
        begin = [self._scheduler.live(start.sequence_id) for start in round.begins]
        if begin:
            self._on_begin([sequence.request.request_id for sequence in begin if sequence is not None])
        if prepares := self._grammars.take():
            round = replace(round, prepares=prepares)
        if self._balance is not None:
            with self.ordering.timing():
                order = self._balance.order()
            round = replace(round, expert_order=order) if len(order) else round
        return round

    def _announce(self) -> None:
        """Sends pending grammars to the sampler when there is no round to send them with."""
        if prepares := self._grammars.take():
            self._pipeline.announce(prepares)

    def _finish_round(self) -> None:
        """Receives the oldest round's verdict, delivers its tokens, and makes the next drafts."""
        result = self._pipeline.collect()
        round, verdict = self._under_way.popleft(), result.verdict
        if self._balance is not None:
            self._balance.observe(verdict.expert_answer)
        time = self._depth.time_of(round, self.times.verdict_received())
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
        """The next drafts; none if the drafter fails, which only reduces speed."""
        if self._drafter is None or not round.follows.size:
            return {}
        try:
            if len(round.ends):
                self._drafter.forget(round.ends)
            with RoundErrorContext(round):
                return self._drafter.draft(round, result.verdict, result.hidden)
        except EngineStoppedError:  # another rank failed, so the replica ends
            raise
        except Exception as error:
            self._scheduler.unfollow()  # the drafter missed this round's tokens: its cache has a gap
            for each in error.exceptions if isinstance(error, ExceptionGroup) else [error]:
                self._drafter_failed(each, round.round_id)
            return {}

    def _drafter_failed(self, error: Exception, round_id: int) -> None:
        """Counts the error; logs the first one of each drafter."""
        named = error if isinstance(error, DrafterError) else DrafterError(type(self._drafter).__name__, error)
        if self._depth.failed(named.drafter, str(named)):
            log.error("drafter %s failed in round %d; continuing without it", named.drafter, round_id, exc_info=named)

    def _end(self, reason: str) -> None:
        """Refuses further requests, and fails all unfinished and queued ones with `reason`."""
        with self._submit_lock:
            self._ended = reason
        self._subscribers.deliver(self._scheduler.fail(reason))
        for message in self._inbox.take(sleep=False):
            if isinstance(message, Submit):
                self._subscribers.add(message.request, message.deliver)
            elif isinstance(message, Call):
                message.done.set_exception(EngineStoppedError(reason))
        self._subscribers.end_all(reason)
