"""What memory is there for the cache, from what the system writes down about it."""

from pathlib import Path

import pytest
import torch

from outrider.workers.engine.execution.memory import available_bytes, cgroup_folders, cgroup_left, free_bytes

MEMINFO = "MemTotal:       24683656 kB\nMemFree:           20000 kB\nMemAvailable:   23105296 kB\nBuffers: 19060 kB\n"


def _group(folder: Path, limit: str, used: int, inactive_file: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\nfile 9\ninactive_file {inactive_file}\nactive_file 3\n")
    return folder


def test_memory_that_only_holds_caches_is_there_to_be_had() -> None:
    assert available_bytes(MEMINFO) == 23105296 * 1024


@pytest.mark.parametrize("meminfo", ["", "MemTotal: 5 kB\nMemFree: 4 kB\n"])
def test_a_system_that_does_not_tell_is_asked_otherwise(meminfo: str) -> None:
    assert available_bytes(meminfo) is None


@pytest.mark.parametrize(
    ("membership", "folders"),
    [
        ("0::/\n", ["."]),
        ("4:memory:/old\n0::/pods/one/box\n", ["pods/one/box", "pods/one", "pods", "."]),
        ("4:memory:/old\n", []),
        ("", []),
    ],
)
def test_every_group_around_a_process_may_limit_it(membership: str, folders: list[str]) -> None:
    assert cgroup_folders(membership, Path("/root")) == [Path("/root") / folder for folder in folders]


@pytest.mark.parametrize(("used", "left"), [(300, 740), (1000, 40), (1200, 0)])
def test_a_group_has_its_limit_less_what_it_uses_but_for_file_pages(tmp_path: Path, used: int, left: int) -> None:
    assert cgroup_left(_group(tmp_path, "1000", used, inactive_file=40)) == left


def test_a_group_without_a_limit_limits_nothing(tmp_path: Path) -> None:
    assert cgroup_left(_group(tmp_path, "max", 300, inactive_file=40)) is None
    assert cgroup_left(tmp_path / "nowhere") is None


def test_a_cpu_offers_a_share_of_what_is_available_and_not_more() -> None:
    available = available_bytes(Path("/proc/meminfo").read_text())

    assert available is not None
    assert 0 < free_bytes(torch.device("cpu")) < 0.5 * available
