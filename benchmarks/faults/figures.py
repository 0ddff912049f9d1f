"""What the episodes of a run show, and the file that gathers the runs."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.results import record
from benchmarks.faults.load import EpisodeResult


def summary(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    injected = [(one, result) for result in results for one in result.injections]
    samples = [
        {
            "fault": one.injection.fault.value,
            "streams": result.episode.streams,
            "alone": len(result.episode.injections) == 1,
            "noticed_s": one.noticed_s,
            "resumed_s": one.resumed_s,
        }
        for one, result in injected
    ]
    return {
        "faults": len(injected),
        "streams": sum(result.episode.streams for result in results),
        "lost": sum(result.lost for result in results),
        "changed": sum(len(result.wrong) - result.lost for result in results),
        "by_fault": dict(Counter(one.injection.fault.value for one, _ in injected)),
        **times(samples),
        "samples": samples,
    }


def times(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Percentiles of both times of faults that came alone, also by the number of streams and the kind of fault; and of
    those that came in pairs, which may leave nothing to go on with until it is restarted."""
    alone = [one for one in samples if one["alone"]]
    return {
        **_both_times(alone),
        "by_streams": _times_by("streams", alone),
        "by_fault_s": _times_by("fault", alone),
        "in_pairs": _both_times([one for one in samples if not one["alone"]]),
    }


def _both_times(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: percentiles([one[name] for one in samples]) for name in ("noticed_s", "resumed_s")}


def _times_by(key: str, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    values = sorted({one[key] for one in samples})
    return {str(value): _both_times([one for one in samples if one[key] == value]) for value in values}


def percentiles(values: Sequence[float | None]) -> dict[str, float]:
    known = sorted(value for value in values if value is not None)
    if not known:
        return {}
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(known[min(len(known) - 1, int(share * len(known)))], 3) for name, share in at.items()}


def save(path: Path, command: str, mode: str, figures: dict[str, Any]) -> None:
    """Appends a run to the file, and updates the totals over all runs of episodes."""
    before = json.loads(path.read_text()) if path.exists() else {"runs": []}
    runs = [*before["runs"], {"mode": mode, **record(command, figures)}]
    of_faults = [one for one in runs if one["mode"] == "faults"]
    counts = {
        name: sum(one[name] for one in of_faults) for name in ("episodes", "faults", "streams", "lost", "changed")
    }
    by_fault: Counter[str] = Counter()
    for one in of_faults:
        by_fault.update(one["by_fault"])
    total = {**counts, "by_fault": dict(by_fault), **times([s for one in of_faults for s in one["samples"]])}
    path.write_text(json.dumps({"total": total, "runs": runs}, indent=1) + "\n")
    print("written to", path)
