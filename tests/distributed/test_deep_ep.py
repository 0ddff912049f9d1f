"""Rows that travel to experts by DeepEP come back as they do by all-to-all; with a stand-in for DeepEP, over gloo."""

import socket
from pathlib import Path

import pytest
from distributed.deep_ep_partner import main
from distributed.partners import Partner

STAND_IN = Path(__file__).parent / "fake_deep_ep"


@pytest.mark.parametrize(("datas", "tensors"), [(2, 2), (1, 2), (2, 1)])
def test_outputs_are_those_of_all_to_all_whatever_order_they_come_in(datas: int, tensors: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        Partner(main, str(rank), str(datas), str(tensors), str(port), paths=[str(STAND_IN)])
        for rank in range(datas * tensors)
    ]
    try:
        said = [rank.stdout.readline() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()

    trips = 5 if datas == 1 else 10  # rows need not travel where all ranks have them
    assert said == [f"{[True] * 5} {trips} 10\n"] * len(ranks)
