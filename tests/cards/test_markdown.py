"""Markdown tables."""

import numpy as np

from singer_hf.cards.markdown import markdown_table


def test_a_table_has_a_header_a_rule_and_a_line_per_row():
    assert markdown_table(("a", "b"), [(1, "x"), (2.5, None)]) == "| a | b |\n|---|---|\n| 1 | x |\n| 2.5 | None |"


def test_pipes_and_line_breaks_in_cells_are_escaped():
    assert markdown_table(["a|b"], [["c\nd"]]) == "| a\\|b |\n|---|\n| c d |"


def test_real_numbers_take_the_format_and_integers_do_not():
    rows = [(0.123456, np.float32(2), 123456, np.int64(7), True, "0.123456")]
    line = markdown_table("abcdef", rows, float_format=".3g").splitlines()[-1]
    assert line == "| 0.123 | 2 | 123456 | 7 | True | 0.123456 |"


def test_without_rows_there_is_no_table():
    assert markdown_table(("a", "b"), iter(())) == ""
