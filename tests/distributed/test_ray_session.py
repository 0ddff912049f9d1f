"""A Ray of its own that `serve` starts, and others that connect to it."""

import subprocess
import sys

PRIVATE = """
import subprocess, sys, ray
from outrider.cluster.ray_session import RaySession

RaySession("local", dashboard=False).open()
address = ray.get_runtime_context().gcs_address
print(address, subprocess.run([sys.executable, "-c", sys.argv[1], address], timeout=60).returncode)
ray.shutdown()
"""
ANOTHER = """
import ray, sys
from outrider.cluster.ray_session import RaySession

RaySession(sys.argv[1], dashboard=False).open()
print(len(ray.nodes()))
"""


def test_a_private_ray_listens_on_loopback_only_and_is_found_there() -> None:
    run = subprocess.run([sys.executable, "-c", PRIVATE, ANOTHER], capture_output=True, text=True, timeout=120)

    nodes, said = run.stdout.splitlines()
    assert nodes == "1", run.stderr
    address, status = said.split()
    assert address.startswith("127.0.0.1:")
    assert status == "0"
