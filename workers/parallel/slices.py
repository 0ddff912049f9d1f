"""How a dimension is cut into slices, one for each rank of a group. Pure; its C++ twin is in sharding.h."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cut:
    """`size` rows in `parts` slices whose sizes differ by at most one `unit`. A unit (an FP8 block) is not cut."""

    size: int
    parts: int
    unit: int = 1

    def begin(self, part: int) -> int:
        units = -(-self.size // self.unit)
        return min(self.size, units * part // self.parts * self.unit)

    def slice(self, part: int) -> slice:
        return slice(self.begin(part), self.begin(part + 1))

    def width(self, part: int) -> int:
        return self.begin(part + 1) - self.begin(part)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.width(part) for part in range(self.parts))

    @property
    def widest(self) -> int:
        return max(self.widths)
