"""Collectives over the group itself, as between machines."""

import socket

from distributed.collectives_partner import main
from distributed.partners import Partner


def _said_by_two_ranks(*machine: str) -> tuple[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [Partner(main, str(rank), "2", str(port), *machine) for rank in range(2)]
    try:
        first, second = (rank.stdout.readline() for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return first, second


def test_ranks_of_different_machines_exchange_over_gloo_with_a_deadline() -> None:
    first, second = _said_by_two_ranks()

    assert first.startswith(
        "gloo [6.0, 0, 4.0, 8.0, 4.0, 'a rank of ranks 0..1 is gone or late: the exchange of latents failed"
    )
    assert second == "gloo [6.0, 2, 4.0, 8.0, 0.0]\n"


def test_ranks_of_one_machine_try_both_and_choose_alike() -> None:
    first, second = _said_by_two_ranks("the same")

    carrier, found = second.rsplit(" [", 1)
    assert carrier in ("shared memory", "gloo"), "what is faster is the machine's affair"
    assert first.startswith(f"{carrier} [6.0, 0, 4.0, 8.0, 4.0, ")
    assert found == "6.0, 2, 4.0, 8.0, 0.0]\n"
