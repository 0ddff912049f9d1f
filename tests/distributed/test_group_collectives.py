"""Collectives over the group itself, as between machines."""

import os
import socket
import subprocess
import sys
from pathlib import Path

PARTNER = Path(__file__).parent / "collectives_partner.py"


def test_ranks_of_different_machines_exchange_over_gloo_with_a_deadline() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(PARTNER), str(rank), "2", str(port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        first, second = (rank.stdout.readline() for rank in ranks if rank.stdout)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()

    assert first.startswith("gloo [6.0, 0, 4.0, 'a rank of ranks 0..1 is gone or late: the exchange of latents failed")
    assert second == "gloo [6.0, 2, 0.0]\n"
