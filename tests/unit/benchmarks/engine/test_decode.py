"""Which points of the grid are measured."""

from argparse import Namespace

from benchmarks.engine.decode import Case, corner_grid, full_grid

ARGS = Namespace(
    kinds=["code", "prose"],
    temperatures=[0.0, 0.8],
    prompt_tokens=[32, 4096],
    batch=[1, 8],
    speculation=("off", "1", "4", "auto"),
)


def test_the_full_grid_has_every_combination_with_every_depth() -> None:
    cases = full_grid(ARGS, longest=4000)

    assert len(cases) == 16
    assert {case.arms for case in cases} == {("off", "1", "4", "auto")}


def test_a_prompt_is_cut_to_what_the_model_has_room_for() -> None:
    assert {case.prompt_tokens for case in full_grid(ARGS, longest=4000)} == {32, 4000}


def test_the_short_grid_has_fixed_depths_in_the_corner_alone() -> None:
    cases = corner_grid(ARGS, longest=4000)

    deep = [case for case in cases if "1" in case.arms]
    assert {(case.prompt_tokens, case.batch) for case in deep} == {(32, 1)}
    assert all(case.arms == ("off", "auto") for case in cases if case not in deep)


def test_the_short_grid_reads_long_prompts_of_one_text_one_at_a_time() -> None:
    long = [case for case in corner_grid(ARGS, longest=4000) if case.prompt_tokens == 4000]

    expected = Case(kind="code", temperature=0.0, prompt_tokens=4000, batch=1, arms=("off", "auto"))
    assert long == [expected]
