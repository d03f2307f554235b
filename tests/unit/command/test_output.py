import json

from distsync.command.output import render_json, render_table


def test_columns_are_aligned_and_numbers_stand_to_the_right() -> None:
    table = render_table(("NAME", "TERM", "UP"), [("a", 7, True), ("node-2", 12, False)])
    assert table.splitlines() == [
        "NAME    TERM  UP",
        "a          7  yes",
        "node-2    12  no",
    ]


def test_what_is_not_known_is_a_dash() -> None:
    assert render_table(("A", "B"), [(None, 1)]).splitlines()[1] == "-  1"


def test_a_table_without_rows_is_its_headings() -> None:
    assert render_table(("NAME", "TOKEN"), []) == "NAME  TOKEN"


def test_a_name_cannot_draw_on_the_terminal() -> None:
    assert "\x1b" not in render_table(("NAME",), [("evil\x1b[2Jname",)])


def test_json_is_one_line() -> None:
    line = render_json({"name": "a\nb", "token": 2**53 - 1})
    assert "\n" not in line
    assert json.loads(line) == {"name": "a\nb", "token": 2**53 - 1}
