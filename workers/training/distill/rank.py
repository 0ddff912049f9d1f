"""One training rank as a process: `python -m outrider.workers.training.distill.rank`, started by gang.py.

Its place and settings are one line on stdin; rank 0 reports on stdout, a JSON object a line. Ends when the parent's
end of stdin closes, however the parent died.
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
    """Where a rank stands among all of them, and the settings as JSON."""

    settings: str
    rank: int
    world_size: int
    local_rank: int  # on its machine: which device it takes
    master_address: str
    master_port: int

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @property
    def environment(self) -> dict[str, str]:
        """The same place as DeepSpeed looks for it."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.world_size),
            "MASTER_ADDR": self.master_address,
            "MASTER_PORT": str(self.master_port),
        }


def main() -> int:
    """Trains to the end. Exit status 1, with the reason as the last line on stderr, if that fails."""
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else prints goes to stderr
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
    """Says something to whoever started us; only rank 0 does."""

    def report(**values: Any) -> None:
        if place.rank == 0:
            reports.write(json.dumps(values) + "\n")

    return report


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
