"""One training rank as a process: `python -m outrider.workers.training.distill.rank`, started by gang.py.

Its place and settings are one line on stdin. Rank 0 reports on stdout, one JSON object per line. It ends when its
stdin closes, which happens even if the parent is killed.
"""

import dataclasses
import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TextIO

DEADLINE_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRank:
    """A rank's place among all of them, and the settings as JSON."""

    settings: str
    rank: int
    world_size: int
    local_rank: int  # on its machine: the index of its device
    master_address: str
    master_port: int

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @property
    def environment(self) -> dict[str, str]:
        """The rank's place as environment variables for DeepSpeed."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.world_size),
            "MASTER_ADDR": self.master_address,
            "MASTER_PORT": str(self.master_port),
        }


def main() -> int:
    """Trains to the end. On failure the exit status is 1 and the last line on stderr is the reason."""
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # other output goes to stderr
    place = TrainingRank(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from outrider.workers.types.errors import OutriderError

    try:
        _train(place, _reporter(place, reports))
    except (OutriderError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _train(place: TrainingRank, report: Callable[..., None]) -> None:
    import torch
    import torch.distributed as dist

    from outrider.workers.training.distill.settings import TrainingSettings

    os.environ |= place.environment
    settings = TrainingSettings.from_json(place.settings)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", place.local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"tcp://{place.master_address}:{place.master_port}",
        rank=place.rank,
        world_size=place.world_size,
        timeout=timedelta(seconds=DEADLINE_S),
    )
    try:
        from outrider.workers.training.distill.training import train

        train(settings, device, report)
    finally:
        dist.destroy_process_group()


def _reporter(place: TrainingRank, reports: TextIO) -> Callable[..., None]:
    """Writes reports to stdout; only on rank 0."""

    def report(**values: Any) -> None:
        if place.rank == 0:
            reports.write(json.dumps(values) + "\n")

    return report


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
