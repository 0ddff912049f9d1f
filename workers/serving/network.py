"""Chooses the network interface for collectives among ranks on several nodes. Linux and IPv4 only."""

import fcntl
import os
import socket
import struct

# The torch.distributed backends read these when a process group is created.
_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_SIOCGIFADDR = 0x8915


def choose_interface(address: str) -> str:
    """Returns the interface that has the node's `address`, and sets it for gloo and NCCL in this process.

    Environment variables that are already set take precedence. If no interface has the address, returns "" and sets
    nothing: the libraries then choose an interface themselves.
    """
    given = next((os.environ[name] for name in _VARIABLES if os.environ.get(name)), "")
    chosen = given or interface_of(address)
    if chosen:
        for name in _VARIABLES:
            os.environ.setdefault(name, chosen)
    return chosen


def interface_of(address: str) -> str:
    """The name of the interface that has this IPv4 address; empty if none has."""
    for _, name in socket.if_nameindex():
        if _address_of(name) == address:
            return name
    return ""


def _address_of(interface: str) -> str:
    """The interface's IPv4 address; "" if it has none."""
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])
