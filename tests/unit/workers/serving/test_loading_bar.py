from io import StringIO

from rich.console import Console

from outrider.workers.serving.loading_bar import A_MOMENT_S, LoadingBar


def drawn(took_s: float, *, terminal: bool = True) -> str:
    """What is on the screen once half of a model was loaded after so long."""
    now, screen = [0.0], StringIO()
    console = Console(file=screen, force_terminal=terminal, width=80)
    with LoadingBar("a-model", console=console, clock=lambda: now[0]) as bar:
        bar.show(0.1)
        now[0] = took_s
        bar.show(0.5)
    return screen.getvalue()


def test_a_model_that_takes_a_while_to_load_shows_how_far_it_is() -> None:
    assert "loading a-model" in drawn(A_MOMENT_S + 1)
    assert "50%" in drawn(A_MOMENT_S + 1)


def test_a_model_that_loads_at_once_draws_no_bar_and_neither_does_a_file() -> None:
    assert "a-model" not in drawn(A_MOMENT_S / 2)
    assert "a-model" not in drawn(A_MOMENT_S + 1, terminal=False)
