"""Two network namespaces of this machine, joined by a link that takes its time: TCP goes as between two machines.

    with DelayedLink(0.001) as link:
        subprocess.run([*link.inside(0), "program"])  # at link.addresses[0], over the interface link.interface

A process reads packets from either side's tun device and writes each to the other side when it is due. Bandwidth is the
machine's own. Needs root and /dev/net/tun. Knows nothing of what goes over it.
"""

import collections
import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from pathlib import Path

_CLONE_NEWNET, _TUNSETIFF = 0x40000000, 0x400454CA
_TUN_WITHOUT_HEADER = 0x0001 | 0x1000
_LARGEST = 65000  # bytes of a packet: few of them, since Python carries each


class DelayedLink:
    """`delay_s` one way."""

    interface = "delayed0"
    addresses = ("10.213.0.1", "10.213.0.2")

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._spaces = tuple(f"outrider-{os.getpid()}-{side}" for side in (0, 1))

    def __enter__(self) -> "DelayedLink":
        for space in self._spaces:
            _ip("netns", "add", space)
        self._carrier = subprocess.Popen(
            [sys.executable, __file__, *self._spaces, str(self._delay_s)], stdout=subprocess.PIPE, text=True
        )
        assert self._carrier.stdout is not None
        if self._carrier.stdout.readline() != "ready\n":
            raise OSError("no tun devices can be made here")
        for space, address in zip(self._spaces, self.addresses, strict=True):
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", self.interface)
            _ip("-n", space, "link", "set", self.interface, "mtu", str(_LARGEST), "up")
            _ip("-n", space, "link", "set", "lo", "up")
        return self

    def __exit__(self, *error: object) -> None:
        self._carrier.kill()
        self._carrier.wait()
        for space in self._spaces:
            _ip("netns", "del", space)

    def inside(self, side: int) -> list[str]:
        """What a command begins with that runs on one side."""
        return ["ip", "netns", "exec", self._spaces[side]]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _carry(spaces: list[str], delay_s: float) -> None:
    """Until killed."""
    ends = [_tun(space) for space in spaces]
    other = dict(zip(ends, reversed(ends), strict=True))
    under_way: collections.deque[tuple[float, int, bytes]] = collections.deque()  # when due, where
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        wait_s = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        for end in select.select(ends, [], [], wait_s)[0]:
            due = time.monotonic() + delay_s
            under_way.extend((due, other[end], packet) for packet in _packets(end))
        while under_way and under_way[0][0] <= time.monotonic():
            _, end, packet = under_way.popleft()
            try:
                os.write(end, packet)
            except OSError:  # that side is not up yet
                continue


def _packets(end: int) -> list[bytes]:
    """All that wait there."""
    found = []
    try:
        while True:
            found.append(os.read(end, 1 << 16))
    except BlockingIOError:
        return found


def _tun(space: str) -> int:
    """This process's end of a device inside a namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/var/run/netns", space).open() as entered:
        if libc.setns(entered.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {space}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", DelayedLink.interface.encode(), _TUN_WITHOUT_HEADER))
    return device


if __name__ == "__main__":
    _carry(sys.argv[1:3], float(sys.argv[3]))
