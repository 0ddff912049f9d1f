"""values.yaml, its schema and the README's table say the same."""

import json
from typing import Any

import pytest
import yaml
from helm.rendering import CHART

from helm.tools.values_table import readme_with_table, rows

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())


def test_the_readmes_table_is_the_one_that_values_yaml_makes() -> None:
    assert (CHART / "README.md").read_text() == readme_with_table(), "run python helm/tools/values_table.py"


def test_every_value_is_explained_line_by_line() -> None:
    explained = list(rows())

    assert len(explained) > 140
    assert all(meaning.endswith((".", ".]")) for _, _, meaning in explained), [
        m for _, _, m in explained if m[-1] != "."
    ]


def _keys(values: Any, path: str = "") -> set[str]:
    """Of what the chart itself structures; a key that holds free-form objects counts as one."""
    if not isinstance(values, dict) or not values:
        return {path}
    return {key for name, value in values.items() for key in _keys(value, f"{path}.{name}")}


def _schema_keys(node: Any, path: str = "") -> set[str]:
    if "properties" not in node:
        return {path}
    return {key for name, value in node["properties"].items() for key in _schema_keys(value, f"{path}.{name}")}


def test_the_schema_knows_every_value_and_no_other() -> None:
    values = _keys(yaml.safe_load((CHART / "values.yaml").read_text()))

    assert _schema_keys(SCHEMA) - {".global"} == values


def _objects(node: Any, path: str = "") -> list[tuple[str, Any]]:
    found = [(path, node)] if isinstance(node, dict) and "properties" in node else []
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return found + [one for key, value in children for one in _objects(value, f"{path}/{key}")]


@pytest.mark.parametrize(
    ("path", "node"), [pytest.param(p, n, id=p or "/") for p, n in _objects(SCHEMA) if p != "/properties"]
)
def test_no_object_of_the_schema_lets_unknown_keys_through(path: str, node: Any) -> None:
    assert node["additionalProperties"] is False, path
