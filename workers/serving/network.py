"""Which network interface of this machine the ranks of several nodes meet through. Linux, IPv4."""

import fcntl
import os
import socket
import struct

# What torch.distributed's backends read when a group is made.
_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_SIOCGIFADDR = 0x8915


def choose_interface(address: str) -> str:
    """The interface that has the node's `address`, and the one that collectives use from now on in this process.

    What the environment says already stays. Empty, and nothing set, where no interface has the address: the libraries
    then choose for themselves.
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
    """Its IPv4 address; empty without one."""
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])
