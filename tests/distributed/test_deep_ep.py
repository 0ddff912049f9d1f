"""Rows that travel to experts by DeepEP come back as they do by all-to-all; with a stand-in for DeepEP, over gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(("datas", "tensors"), [(2, 2), (1, 2), (2, 1)])
def test_outputs_are_those_of_all_to_all_whatever_order_they_come_in(datas: int, tensors: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = [str(HERE / "fake_deep_ep"), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / "deep_ep_partner.py"), str(rank), str(datas), str(tensors), str(port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(datas * tensors)
    ]  # fmt: skip
    try:
        said = [rank.stdout.readline() for rank in ranks if rank.stdout]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()

    trips = 5 if datas == 1 else 10  # rows need not travel where all ranks have them
    assert said == [f"{[True] * 5} {trips} 10\n"] * len(ranks)
