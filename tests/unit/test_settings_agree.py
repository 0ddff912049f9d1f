"""LLM, the configuration of `outrider serve`, the command line and the reference page have the same settings."""

import dataclasses
import inspect
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import typer

from outrider import LLM, AsyncClient, Client
from outrider.cluster.api.errors import SettingsError
from outrider.cluster.cli.app import app
from outrider.cluster.config import ServeSettings, load_settings
from outrider.cluster.gateway.settings import GatewaySettings, SharedGatewaySettings
from outrider.workers.config import EngineConfig
from outrider.workers.types.settings import REQUIRED, DeclaredSetting, settings_of

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {"serve": ServeSettings, "gateway": GatewaySettings}


def options(command: str) -> dict[str, Any]:
    """The options of a command that are settings, by the setting's name."""
    known = settings_of(COMMANDS[command])
    return {one.name: one for one in typer.main.get_command(app).commands[command].params if one.name in known}


def test_llm_has_every_setting_of_the_engine_with_its_type_and_default() -> None:
    parameters = inspect.signature(LLM).parameters

    declared = {field.name: field for field in dataclasses.fields(EngineConfig)}
    assert set(parameters) == set(declared) == set(settings_of(EngineConfig))
    assert {name: one.default for name, one in parameters.items()} == {n: f.default for n, f in declared.items()}
    types = inspect.get_annotations(EngineConfig)
    assert {name: one.annotation for name, one in parameters.items() if name in types} == {
        name: one.__origin__ for name, one in types.items() if name in parameters
    }
    assert [n for n, p in parameters.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY] == ["model"]


def test_llm_says_what_each_setting_is_and_may_be() -> None:
    said = inspect.getdoc(LLM.__init__) or ""

    missing = [
        n for n, one in settings_of(EngineConfig).items() if f"{n}: {one.text} Values: {one.values}." not in said
    ]
    assert missing == []


@pytest.mark.parametrize("part", [EngineConfig, SharedGatewaySettings])
def test_serve_has_every_setting_of_the_engine_and_of_a_gateway(part: type) -> None:
    known = settings_of(ServeSettings)

    assert {name: known.get(name) for name in settings_of(part)} == dict(settings_of(part))


@pytest.mark.parametrize("kind", [ServeSettings, GatewaySettings])
def test_every_field_of_the_settings_has_a_text(kind: type) -> None:
    internal = {"cluster_key"}

    assert {field.name for field in dataclasses.fields(kind)} - internal == set(settings_of(kind))
    assert [name for name, one in settings_of(kind).items() if not re.fullmatch(r"[\w\"].*[.]", one.text)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_has_the_text_and_the_default_of_its_setting(command: str) -> None:
    declared = settings_of(COMMANDS[command])

    for name, option in options(command).items():
        shown = option.show_default or None
        default = declared[name].default
        assert option.help == declared[name].text
        assert option.opts == [f"--{name.replace('_', '-')}"]
        assert shown == (None if default in (None, False, REQUIRED) else str(default)), name


def test_every_setting_of_a_gateway_has_an_option() -> None:
    assert set(options("gateway")) == set(settings_of(GatewaySettings))


def test_the_reference_page_has_each_settings_default_values_and_text() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "reference_pages.py"))
    rows = set(page["settings"]().splitlines())

    for name, one in settings_of(ServeSettings).items():
        cells = (f"`{name}`", f"`{one.default!r}`", one.values, one.text)
        assert f"| {' | '.join(map(page['cell'], cells))} |" in rows, name


@pytest.mark.parametrize("name", ["__init__", "generate", "stream"])
def test_both_clients_have_the_same_parameters(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (Client, AsyncClient))

    assert ours == theirs
    assert {"__init__": "patience_s"}.get(name, "chat_template_kwargs") in ours


def outside(one: DeclaredSetting) -> list[Any]:
    """Values next to a setting's bounds, outside of them."""
    setting, step = one.setting, 1 if int in one.types else 0.5
    found: list[Any] = [] if setting.least is None else [setting.least - step]
    found += [] if setting.most is None else [setting.most + step]
    found += [] if setting.above is None else [setting.above]
    found += ["no such choice"] if setting.choices else []
    return [*found, *([float("nan")] if found and float in one.types else [])]


@pytest.mark.parametrize("name", [name for name, one in settings_of(ServeSettings).items() if outside(one)])
def test_a_value_outside_the_bounds_is_refused_by_name_with_the_allowed_ones(name: str) -> None:
    one = settings_of(ServeSettings)[name]

    for value in outside(one):
        with pytest.raises(SettingsError, match=re.escape(f"{name} must be {one.values}, got {value!r}")):
            load_settings(options={name: value})


@pytest.mark.parametrize("name", settings_of(ServeSettings))
def test_a_value_of_another_type_is_refused_by_name(name: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} must be "):
        load_settings(options={name: [1]})
