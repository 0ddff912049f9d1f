from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from outrider.cluster.api.errors import SettingsError
from outrider.cluster.config import ServeSettings, load_settings, parse_assignments


def yaml(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def test_options_win_over_assignments_and_assignments_over_the_file(tmp_path: Path) -> None:
    file = yaml(tmp_path, "port: 1\nmax_num_seqs: 1\nblock_size: 1\n")

    settings = load_settings(file, ["port=2", "max_num_seqs=2"], {"port": 3, "host": None})

    assert (settings.port, settings.max_num_seqs, settings.block_size) == (3, 2, 1)
    assert settings.host == "127.0.0.1"


def test_engine_settings_reach_the_engine(tmp_path: Path) -> None:
    engine = load_settings(None, ["max_num_batched_tokens=64", "enable_prefix_caching=false"], {"model": "M"}).engine

    assert (engine.model, engine.max_num_batched_tokens, engine.enable_prefix_caching) == ("M", 64, False)


def test_every_engine_setting_keeps_the_engines_own_default() -> None:
    from outrider.workers.config import EngineConfig

    assert load_settings().engine == EngineConfig()


@pytest.mark.parametrize(("text", "value"), [("off", "off"), ("auto", "auto"), ("4", 4)])
def test_speculation_is_read_the_same_from_a_file_an_assignment_and_an_option(
    tmp_path: Path, text: str, value: Any
) -> None:
    from_file = load_settings(yaml(tmp_path, f"speculation: {text}\n"))
    from_assignment = load_settings(None, [f"speculation={text}"])
    from_option = load_settings(None, (), {"speculation": text})

    assert [s.speculation for s in (from_file, from_assignment, from_option)] == [value] * 3


def test_an_unknown_key_is_named_with_its_neighbours() -> None:
    with pytest.raises(SettingsError, match=r"unknown setting 'max_num_seq': did you mean max_num_seqs"):
        load_settings(None, ["max_num_seq=4"])


def test_an_unknown_key_that_resembles_nothing_brings_the_list_of_all() -> None:
    with pytest.raises(SettingsError, match=r"unknown setting 'zzz': known settings: auth_token_file, .*speculation"):
        load_settings(None, ["zzz=4"])


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("port=many", "port"),
        ("port=70000", "port"),
        ("max_num_seqs=0", "max_num_seqs"),
        ("max_num_seqs=true", "max_num_seqs"),
        ("speculation=17", "speculation"),
        ("dtype=int8", "dtype"),
        ("name=a/b", "name"),
        ("pipeline_parallel_size=0", "pipeline_parallel_size"),
        ("block_size", "block_size"),
    ],
)
def test_a_value_that_cannot_be_is_one_line_that_names_its_setting(assignment: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named) as error:
        load_settings(None, [assignment])

    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "said"), [("- a\n- b\n", "list"), ("a: [", "not YAML")])
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=rf"settings\.yaml.*{said}"):
        load_settings(yaml(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml"):
        load_settings(tmp_path / "nowhere.yaml")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        ServeSettings().port = 5  # type: ignore[misc]  # the point of the test


def test_a_number_with_an_exponent_needs_no_point() -> None:
    assert parse_assignments(["a=6e-4", "b=-1E3", "c=1.5e-3", "d=6e-4x"]) == {
        "a": 6e-4,
        "b": -1000.0,
        "c": 1.5e-3,
        "d": "6e-4x",
    }
