"""Machines that are network namespaces of this one, on a bridge, between which one direction can be cut. Needs root.

A cut is silent, as in a network that loses packets: the sender's go to a link address that no machine has.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

HEAD = "head"  # has the bridge: Ray's head, the controller, and clients are there
ENVIRONMENT = "OUTRIDER_CHAOS_NETWORK"  # the prefix of the network that this process is in
_NOBODY = "02:00:00:00:00:fe"
_NETWORK = "10.77.0"


class Network:
    """The network whose namespaces begin with `prefix`. `machines`: their names, HEAD first."""

    def __init__(self, prefix: str, machines: Sequence[str]) -> None:
        self.prefix, self.machines = prefix, tuple(machines)
        self._cuts: set[tuple[str, str]] = set()
        self._dark: set[str] = set()

    def address(self, machine: str) -> str:
        return f"{_NETWORK}.{1 + self.machines.index(machine)}"

    def command_on(self, machine: str) -> list[str]:
        """Put this before a command, to run it there."""
        return ["nsenter", f"--net=/run/netns/{self._name(machine)}"]

    def machine_of(self, pid: int) -> str | None:
        """None if the process is in no machine of this network, or gone."""
        with contextlib.suppress(OSError):
            own = Path(f"/proc/{pid}/ns/net").stat().st_ino
            return next((one for one in self.machines if self._file(one).stat().st_ino == own), None)
        return None

    def cut(self, source: str, destination: str) -> None:
        """What `source` sends to `destination` is lost. The other direction stays open."""
        to = self.address(destination)
        device = "bridge" if source == HEAD else "eth0"
        self._ip(source, "neigh", "replace", to, "lladdr", _NOBODY, "nud", "permanent", "dev", device)
        self._cuts.add((source, destination))

    def black_hole(self, machine: str) -> None:
        """All that it sends, and all that is sent to it, is lost."""
        self._ip(HEAD, "link", "set", machine, "down")
        self._dark.add(machine)

    def heal(self) -> None:
        for source, destination in self._cuts:
            device = "bridge" if source == HEAD else "eth0"
            self._ip(source, "neigh", "del", self.address(destination), "dev", device)
        for machine in self._dark:
            self._ip(HEAD, "link", "set", machine, "up")
        self._cuts, self._dark = set(), set()

    def create(self) -> None:
        for machine in self.machines:
            subprocess.run(["ip", "netns", "add", self._name(machine)], check=True)
            self._ip(machine, "link", "set", "lo", "up")
        self._ip(HEAD, "link", "add", "bridge", "type", "bridge")
        self._join(HEAD, "bridge")
        for machine in self.machines[1:]:
            peer = ["peer", "name", "eth0", "netns", self._name(machine)]
            self._ip(HEAD, "link", "add", machine, "type", "veth", *peer)
            self._ip(HEAD, "link", "set", machine, "master", "bridge", "up")
            self._join(machine, "eth0")

    def _join(self, machine: str, device: str) -> None:
        self._ip(machine, "addr", "add", f"{self.address(machine)}/24", "dev", device)
        self._ip(machine, "link", "set", device, "up")
        self._ip(machine, "route", "add", "default", "dev", device)  # Ray finds its address by a route to the Internet

    def remove(self) -> None:
        for machine in self.machines:
            subprocess.run(["ip", "netns", "del", self._name(machine)], check=False, stderr=subprocess.DEVNULL)

    def _name(self, machine: str) -> str:
        return f"{self.prefix}-{machine}"

    def _file(self, machine: str) -> Path:
        return Path("/run/netns", self._name(machine))

    def _ip(self, machine: str, *arguments: str) -> None:
        subprocess.run(["ip", "-n", self._name(machine), *arguments], check=True)


@contextlib.contextmanager
def created(machines: Sequence[str]) -> Iterator[Network]:
    """A network that is removed at the end."""
    network = Network(f"chaos{os.getpid()}", machines)
    try:
        network.create()
        yield network
    finally:
        network.remove()
