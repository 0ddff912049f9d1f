import dataclasses
from typing import Any

import pytest

from outrider.cluster.demo.report import Run, acceptance_per_position, differing, make_report
from outrider.cluster.demo.runs import affordable_tokens, load_tasks
from outrider.workers.text.assembler import Usage


def a_run(mode: str, *, seconds: float, repeat: int = 0, prompt: int = 0, domain: str = "code", tokens: int = 8) -> Run:
    usage = Usage()
    for _ in range(tokens // 2):
        usage.add_round(tokens=2, drafted=2, accepted=1) if mode == "auto" else usage.add_round(2, 0, 0)
    return Run(
        domain=domain,
        prompt=prompt,
        repeat=repeat,
        mode=mode,
        token_ids=tuple(range(tokens)),
        text="t",
        finish_reason="length",
        seconds=seconds,
        usage=usage,
    )


def test_speed_is_the_median_of_the_passes_over_the_prompts() -> None:
    runs = [a_run("off", seconds=seconds, repeat=repeat) for repeat, seconds in enumerate((1.0, 8.0, 2.0))]
    runs += [a_run("auto", seconds=seconds, repeat=repeat) for repeat, seconds in enumerate((1.0, 0.5, 9.0))]

    domain = make_report("m", 2, runs).domains["code"]

    assert domain.tokens_per_second_off == pytest.approx(8 / 2.0)
    assert domain.tokens_per_second_auto == pytest.approx(8 / 1.0)
    assert domain.speedup == pytest.approx(2.0)


def test_a_pass_weighs_its_prompts_by_the_time_they_take() -> None:
    runs = [a_run(mode, seconds=seconds, prompt=p) for mode in ("off", "auto") for p, seconds in ((0, 1.0), (1, 3.0))]

    domain = make_report("m", 2, runs).domains["code"]

    assert domain.tokens_per_second_off == pytest.approx(16 / 4.0)
    assert (domain.prompts, domain.tokens) == (2, 16)


def test_repeats_add_no_prompts_and_no_tokens() -> None:
    runs = [a_run(mode, seconds=1, repeat=repeat) for repeat in range(3) for mode in ("off", "auto")]

    domain = make_report("m", 2, runs).domains["code"]

    assert (domain.prompts, domain.tokens) == (1, 8)
    assert domain.mean_tokens_per_round == pytest.approx(2.0)
    assert domain.acceptance_per_position == [1.0, 0.0]


def test_acceptance_at_a_position_counts_only_rounds_that_verified_that_many() -> None:
    usage = Usage()
    for drafted, accepted in ((3, 3), (3, 1), (1, 1), (1, 0), (0, 0)):
        usage.add_round(tokens=accepted + 1, drafted=drafted, accepted=accepted)

    # four rounds verified a first draft and three accepted it; two verified more, and one of them accepted all
    assert acceptance_per_position([usage]) == [3 / 4, 1 / 2, 1 / 2]
    assert acceptance_per_position([usage, Usage()]) == [3 / 4, 1 / 2, 1 / 2]


@pytest.mark.parametrize(
    "change",
    [{"token_ids": (9,)}, {"text": "another"}, {"finish_reason": "stop"}],
    ids=lambda change: next(iter(change)),
)
def test_any_difference_between_the_modes_is_found_and_placed(change: dict[str, Any]) -> None:
    same = [a_run(mode, seconds=1, prompt=prompt) for prompt in range(2) for mode in ("off", "auto")]
    assert differing(same) == []
    assert make_report("m", 2, same).identical

    different = [*same[:-1], dataclasses.replace(same[-1], **change)]
    assert differing(different) == [("code", 1)]
    assert not make_report("m", 2, different).identical


def test_a_difference_between_repeats_of_one_mode_counts_too() -> None:
    runs = [a_run("auto", seconds=1), dataclasses.replace(a_run("auto", seconds=1, repeat=1), text="another")]

    assert differing(runs) == [("code", 0)]


def test_the_file_has_exactly_the_agreed_keys() -> None:
    report = dataclasses.asdict(make_report("m", 2, [a_run("off", seconds=1), a_run("auto", seconds=1)]))

    assert set(report) == {"model", "pipeline_parallel_size", "identical", "domains"}
    assert set(report["domains"]["code"]) == {
        "prompts",
        "tokens",
        "tokens_per_second_off",
        "tokens_per_second_auto",
        "speedup",
        "acceptance_per_position",
        "mean_tokens_per_round",
    }


def test_the_bundled_prompts_make_the_four_domains() -> None:
    tasks = load_tasks(3)

    assert [task.domain for task in tasks] == [
        domain for domain in ("code", "prose", "code_sampled", "prose_sampled") for _ in range(3)
    ]
    assert {task.temperature for task in tasks if task.domain.endswith("_sampled")} == {0.8}
    assert {task.temperature for task in tasks if not task.domain.endswith("_sampled")} == {0.0}


@pytest.mark.parametrize(("speed", "tokens"), [(1000.0, 64), (50.0, 40), (1.0, 16)])
def test_a_slower_machine_is_asked_for_fewer_tokens(speed: float, tokens: int) -> None:
    assert affordable_tokens(speed, tasks=16, most=64) == tokens
