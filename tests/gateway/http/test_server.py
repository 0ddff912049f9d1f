"""The HTTP server's sockets."""

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from gateway.harness import running


def accepted_from(client: tuple[str, int]) -> Iterator[socket.socket]:
    """Copies of this process's sockets whose other end is `client`."""
    for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        with contextlib.suppress(OSError):  # closed meanwhile, or not connected
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as copy:
                    if copy.family == socket.AF_INET and copy.getpeername() == client:
                        yield copy


def test_no_event_of_a_stream_waits_until_the_client_has_acknowledged_the_one_before(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, http_port=0) as cluster:
            reader, writer = await asyncio.open_connection("127.0.0.1", cluster.gateway.http_port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            accepted = accepted_from(writer.get_extra_info("sockname"))
            options = [one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in accepted]
            assert options == [1]
            writer.close()

    asyncio.run(scenario())
