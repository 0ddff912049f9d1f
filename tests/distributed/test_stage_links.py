"""Stage links between processes: what they travel over, and how they end with a process that is killed or frozen."""

import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from distributed.link_partner import CPU, main, ring
from distributed.partners import Partner
from patience import AT_ONCE_S

from outrider.workers.parallel import groups
from outrider.workers.parallel.links.stage_link import StageLink
from outrider.workers.types.errors import EngineStoppedError
from outrider.workers.types.rounds.round import Round, Verdict, ints

HERE, ELSEWHERE = "here", "elsewhere"
OVER = pytest.mark.parametrize(("machine", "over"), [(HERE, "shared memory"), (ELSEWHERE, "gloo")])


@dataclass
class Ends:
    """This process's links, over what they are, and the partners' processes by rank from 1."""

    incoming: StageLink
    onward: StageLink
    over: tuple[str, str]
    partners: list[Partner]


class Company:
    """Starts partners, and ends them."""

    def __init__(self) -> None:
        self.partners: list[Partner] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]

    def start(self, rank: int, ranks: int, machine: str, task: str) -> Partner:
        self.partners.append(Partner(main, str(rank), str(ranks), str(self._port), machine, task))
        return self.partners[-1]

    def join(self, *partners: tuple[str, str], timeout_s: float = 30.0) -> Ends:
        """This process becomes rank 0, on the machine HERE; `partners` are (machine, task) of the ranks after it."""
        ranks = 1 + len(partners)
        for rank, (machine, task) in enumerate(partners, start=1):
            self.start(rank, ranks, machine, task)
        groups.join(0, ranks, "127.0.0.1", self._port, CPU)
        incoming, onward = ring(0, ranks, HERE)
        return Ends(
            StageLink(incoming, "rank 9 (the one before)", timeout_s),
            StageLink(onward, "rank 1 (the one after)", timeout_s),
            (incoming.name, onward.name),
            self.partners,
        )

    def end(self) -> None:
        for partner in self.partners:
            partner.kill()
            partner.wait()
        groups.leave()


@pytest.fixture
def company() -> Iterator[Company]:
    company = Company()
    yield company
    company.end()


def _assert_returns(ends: Ends, content: Round | Verdict | None, rows: int) -> None:
    hidden = torch.randn(rows, 300) if content is not None else torch.empty(0, 0)
    ends.onward.send(content, hidden)
    message = ends.incoming.receive(deadline=True, waiting_for="it back")

    assert repr(message.content) == repr(content)
    assert torch.equal(message.hidden, hidden)


def _assert_everything_returns(ends: Ends) -> None:
    tokens = ints(range(900))  # 7200 bytes: more than one tensor's on the group
    for rows in (1, 0, 2048, 3):
        _assert_returns(ends, Round(round_id=rows, token_ids=tokens[:rows]), rows)
        _assert_returns(ends, Verdict(round_id=rows, token_ids=tokens[: rows // 2]), rows // 2)
    _assert_returns(ends, None, 0)


@OVER
def test_every_kind_of_message_goes_there_and_back(company: Company, machine: str, over: str) -> None:
    ends = company.join((machine, "pass on"))

    assert ends.over == (over, over)
    _assert_everything_returns(ends)
    assert ends.partners[0].wait(60) == 0


def test_among_three_ranks_each_link_travels_as_its_own_ends_can(company: Company) -> None:
    ends = company.join((HERE, "pass on"), (ELSEWHERE, "pass on"))

    assert ends.over == ("gloo", "shared memory")
    _assert_everything_returns(ends)


def test_a_receiver_that_cannot_map_the_memory_is_reached_over_the_group(company: Company) -> None:
    ends = company.join((HERE, "pass on, with no descriptor to spare"))

    assert ends.over == ("shared memory", "gloo")
    _assert_everything_returns(ends)


def _soon(partner: Partner, sign: signal.Signals) -> list[float]:
    """Signals the partner in a moment; the list then holds when."""
    struck: list[float] = []

    def strike() -> None:
        struck.append(time.monotonic())
        partner.send_signal(sign)

    threading.Timer(0.3, strike).start()
    return struck


@OVER
def test_a_peer_killed_while_we_wait_for_it_is_an_error_at_once(company: Company, machine: str, over: str) -> None:
    ends = company.join((machine, "pass on"))
    _assert_returns(ends, Round(), 1)
    struck = _soon(ends.partners[0], signal.SIGKILL)
    with pytest.raises(EngineStoppedError, match=r"rank 9 .* is gone or late: waiting for a round from it failed"):
        ends.incoming.receive(deadline=False, waiting_for="a round")

    assert 0 <= time.monotonic() - struck[0] < AT_ONCE_S


def test_a_peer_killed_while_we_send_to_it_is_an_error_at_once(company: Company) -> None:
    ends = company.join((HERE, "sleep"))
    struck = _soon(ends.partners[0], signal.SIGKILL)
    with pytest.raises(EngineStoppedError, match=r"rank 1 .* sending to it failed \(it closed the connection\)"):
        _send_for_ever(ends.onward)

    assert 0 <= time.monotonic() - struck[0] < AT_ONCE_S


def _send_for_ever(onward: StageLink) -> None:
    while True:
        onward.send(Round(), torch.ones(128, 256))


@OVER
def test_a_peer_that_left_its_group_is_gone_though_its_process_lives(company: Company, machine: str, over: str) -> None:
    ends = company.join((machine, "leave"))
    ends.onward.send(Round(), torch.ones(1, 256))
    with pytest.raises(EngineStoppedError, match=r"rank 9 .* waiting for a round from it failed"):
        ends.incoming.receive(deadline=False, waiting_for="a round")

    assert ends.partners[0].poll() is None


@OVER
def test_a_frozen_peer_is_an_error_at_the_deadline(company: Company, machine: str, over: str) -> None:
    ends = company.join((machine, "pass on"), timeout_s=1.5)
    _assert_returns(ends, Round(), 1)
    ends.partners[0].send_signal(signal.SIGSTOP)
    ends.onward.send(Round(round_id=5), torch.ones(1, 256))
    began = time.monotonic()
    with pytest.raises(EngineStoppedError, match=r"rank 9 .* waiting for the verdict of round 5 from it failed"):
        ends.incoming.receive(deadline=True, waiting_for="the verdict of round 5")

    assert 1.4 < time.monotonic() - began < 1.5 + AT_ONCE_S


def _left_behind() -> set[str]:
    """What our processes can leave on a machine: files in memory, and sockets in the abstract namespace."""
    files = {file.name for file in Path("/dev/shm").iterdir() if not file.name.startswith("__KMP")}  # OpenMP's own
    sockets = {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()}
    return files | {name for name in sockets if name.startswith("@outrider-")}


@pytest.mark.parametrize("killed", [(0,), pytest.param((1,), marks=pytest.mark.full), (0, 1)])
def test_killed_ranks_leave_nothing_and_survivors_end_by_themselves(company: Company, killed: tuple[int, ...]) -> None:
    before = _left_behind()
    ranks = [company.start(0, 2, HERE, "circulate"), company.start(1, 2, HERE, "pass on")]
    assert ranks[0].stdout.readline() == "circulating\n"
    for rank in killed:
        ranks[rank].kill()
    for rank in ranks:
        rank.wait(60)

    deadline = time.monotonic() + AT_ONCE_S
    while left := _left_behind() - before:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)
