"""The table of values in the chart's README, made from values.yaml. `python helm/tools/values_table.py` writes it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parents[1] / "outrider"
START, END = "<!-- values: made by helm/tools/values_table.py -->\n", "<!-- end of values -->\n"
_KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z][A-Za-z0-9]*):")


def rows() -> Iterator[tuple[str, str, str]]:
    """Path, default and meaning of each value. ValueError names one that no comment explains."""
    text = (CHART / "values.yaml").read_text()
    defaults = yaml.safe_load(text)
    path: list[str] = []
    comment, inside = "", False  # inside the default of a list
    for line in text.splitlines():
        found = _KEY.match(line)
        if line.lstrip().startswith("#"):
            comment = line.lstrip("# ").strip()
        elif found and not (inside and len(found["indent"]) // 2 >= len(path)):
            path[len(found["indent"]) // 2 :] = [found["key"]]
            value = _at(defaults, path)
            inside = isinstance(value, list)
            if not isinstance(value, dict) or not value:
                if not comment:
                    raise ValueError(f"values.yaml: {'.'.join(path)} has no comment above it")
                yield ".".join(path), _shown(value), comment
            comment = ""


def _at(values: object, path: list[str]) -> object:
    for key in path:
        assert isinstance(values, dict), path
        values = values[key]
    return values


def _shown(value: object) -> str:
    return f"`{json.dumps(value)}`"


def table() -> str:
    lines = ["| value | default | meaning |", "|---|---|---|"]
    lines += [f"| `{path}` | {default} | {meaning} |" for path, default, meaning in rows()]
    return "\n".join(lines) + "\n"


def readme_with_table() -> str:
    readme = (CHART / "README.md").read_text()
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}{table()}{END}{after}"


if __name__ == "__main__":
    (CHART / "README.md").write_text(readme_with_table())
