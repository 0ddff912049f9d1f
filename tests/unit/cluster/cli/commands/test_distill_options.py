"""The options of `outrider distill` are settings of the training, and of the engine that harvests."""

import pytest
import typer

from outrider.cluster.cli.app import app, run
from outrider.workers.config import EngineConfig
from outrider.workers.training.distill.settings import TrainingSettings
from outrider.workers.types.settings import settings_of


def test_an_option_has_the_text_and_the_default_of_its_setting() -> None:
    known = settings_of(TrainingSettings)
    options = {one.name: one for one in typer.main.get_command(app).commands["distill"].params if one.name in known}

    shared = {"depth", "trained", "loss", "steps", "zero_stage", "offload"}
    assert shared <= set(options)
    assert {name: options[name].help for name in shared} == {name: known[name].text for name in shared}
    assert (options["loss"].metavar, options["zero_stage"].metavar) == ("kl|tv", "1|2|3")
    assert {name: options[name].show_default for name in shared} == {name: str(known[name].default) for name in shared}


@pytest.mark.parametrize("name", ["tensor_parallel_size", "data_parallel_size", "model", "port"])
def test_the_harvesting_engine_takes_neither_other_splits_than_stages_nor_settings_of_a_server(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    value = settings_of(EngineConfig)[name].default if name in settings_of(EngineConfig) else 1

    assert run(["distill", "--engine", f"{name}={value}"]) == 2
    assert f"--engine {name}: not a setting of an offline engine" in capsys.readouterr().err
