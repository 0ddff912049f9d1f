"""A way to a gateway that can be cut in one direction: what is sent then does not arrive, and nobody is told.

As behind a network that drops packets: connections stay open, and what was held up arrives once the way is whole again.
"""

import contextlib
import socket
import threading

HOST = "127.0.0.1"


class Wire:
    """Listens on a port of its own, and passes on what comes, both ways."""

    def __init__(self, target_port: int) -> None:
        self._target = (HOST, target_port)
        self._listener = socket.create_server((HOST, 0))
        self.to_target, self.from_target = threading.Event(), threading.Event()  # cleared: nothing gets through
        self.mend()
        threading.Thread(target=self._accept, name="wire", daemon=True).start()

    @property
    def address(self) -> str:
        return f"{HOST}:{self._listener.getsockname()[1]}"

    def mend(self) -> None:
        self.to_target.set()
        self.from_target.set()

    def close(self) -> None:
        self.mend()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(self._target)
                except OSError:
                    near.close()
                    continue
                for source, sink, whole in ((near, far, self.to_target), (far, near, self.from_target)):
                    threading.Thread(target=_pass_on, args=(source, sink, whole), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket, whole: threading.Event) -> None:
    """Until either end is closed; then both are."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            whole.wait()
            sink.sendall(data)
    for one in (source, sink):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
    source.close()
