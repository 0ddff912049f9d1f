"""What torch.distributed says of a lost connection is told in a few words."""

from outrider.workers.parallel.groups import first_clause


def test_of_a_lost_connection_only_what_happened_is_told() -> None:
    error = RuntimeError(
        "[/src/gloo/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4242. This may indicate a crash. GLHF!"
    )

    assert first_clause(error) == "Connection closed by peer [127.0.0.1]:4242"
