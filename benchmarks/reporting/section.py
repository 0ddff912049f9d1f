"""One part of the report: what was measured, in tables and plots, and how to measure it again."""

from dataclasses import dataclass, field
from typing import Any

from benchmarks.reporting.tables import Table

Record = dict[str, Any]  # a file of results


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    title: str
    record: Record
    tables: list[Table]
    plots: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def source(self) -> str:
        """The command, machine and date of the figures."""
        parts = [f"`{self.record['command']}`", self.record["machine"]]
        if (threads := self.record.get("OMP_NUM_THREADS", "default")) != "default":
            parts.append(f"OMP_NUM_THREADS={threads}")
        return ", ".join([*parts, self.record["date"]])
