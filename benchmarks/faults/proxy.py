"""A TCP proxy in front of a gateway. Either direction can be blocked while connections stay open.

It behaves as a network that drops packets: blocked data is held back, and delivered once the direction is open again.
"""

import contextlib
import socket
import threading

HOST = "127.0.0.1"


class Proxy:
    """Listens on its own port, and forwards both directions to `target`, a host and a port.

    Clear `inbound_open` to block what clients send, `outbound_open` to block what the gateway sends.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server((HOST, 0))
        self.inbound_open, self.outbound_open = threading.Event(), threading.Event()
        self.unblock()
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    @property
    def address(self) -> str:
        return f"{HOST}:{self._listener.getsockname()[1]}"

    def unblock(self) -> None:
        self.inbound_open.set()
        self.outbound_open.set()

    def close(self) -> None:
        self.unblock()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                try:
                    gateway = socket.create_connection(self._target)
                except OSError:
                    client.close()
                    continue
                for pair in ((client, gateway, self.inbound_open), (gateway, client, self.outbound_open)):
                    threading.Thread(target=_forward, args=pair, daemon=True).start()


def _forward(source: socket.socket, sink: socket.socket, is_open: threading.Event) -> None:
    """Forwards until either socket is closed, then shuts both down."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            is_open.wait()
            sink.sendall(data)
    for one in (source, sink):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
    source.close()
