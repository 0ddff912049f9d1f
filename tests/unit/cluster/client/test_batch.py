import json
from pathlib import Path

import pytest

from outrider.cluster.api.errors import InvalidRequestError, SettingsError
from outrider.cluster.client.batch import Answers, Line, parse, read_lines


def answer(line: Line) -> dict[str, object]:
    return {"line": line.number, "id": None, "input": line.digest, "outputs": []}


def numbers(path: Path) -> list[int]:
    return [json.loads(text)["line"] for text in path.read_text().splitlines()]


def test_blank_lines_are_skipped_and_numbers_are_the_files(tmp_path: Path) -> None:
    (tmp_path / "in").write_text('{"prompt": "a"}\n\n  {"prompt": "b"}')

    assert list(read_lines(tmp_path / "in")) == [Line(1, '{"prompt": "a"}'), Line(3, '{"prompt": "b"}')]


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--input .*absent.*No such file"):
        list(read_lines(tmp_path / "absent"))


@pytest.mark.parametrize(("text", "wrong"), [("{", "not JSON"), ("[1]", "not a JSON object"), ("\udcff", "not JSON")])
def test_a_line_that_is_no_object_says_so(text: str, wrong: str) -> None:
    with pytest.raises(InvalidRequestError, match=wrong):
        parse(Line(1, text))


def test_the_id_is_the_callers_and_the_rest_is_the_request() -> None:
    assert parse(Line(1, '{"id": 7, "prompt": "a", "seed": 1}')) == (7, {"prompt": "a", "seed": 1})


def test_a_second_run_keeps_answers_and_asks_again_what_failed_or_was_cut_off(tmp_path: Path) -> None:
    lines = [Line(number, f'{{"prompt": "{number}"}}') for number in (1, 2, 3)]
    path = tmp_path / "out"
    first = Answers(path)
    first.add(answer(lines[0]))
    first.add({"line": 2, "id": None, "input": lines[1].digest, "error": {"kind": "x", "message": "y"}})
    first.close()
    with path.open("a") as file:
        file.write(json.dumps(answer(lines[2]))[:10])  # killed as it wrote

    again = Answers(path)

    assert [again.has(line) for line in lines] == [True, False, False]
    again.add(answer(lines[2]))
    assert numbers(path) == [1, 3]
    again.close()


def test_answers_to_another_input_are_not_mixed_with_this_ones(tmp_path: Path) -> None:
    answers = Answers(tmp_path / "out")
    answers.add(answer(Line(1, '{"prompt": "a"}')))
    answers.close()

    with pytest.raises(SettingsError, match="has an answer to a different line 1"):
        Answers(tmp_path / "out").has(Line(1, '{"prompt": "b"}'))
    assert not Answers(tmp_path / "out", overwrite=True).has(Line(1, '{"prompt": "b"}'))


def test_a_file_that_is_something_else_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\n")

    with pytest.raises(SettingsError, match="line 1 is not an answer of an earlier run"):
        Answers(path)
    assert path.read_text() == "dear diary\n"


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--output .*absent"):
        Answers(tmp_path / "absent" / "out")
