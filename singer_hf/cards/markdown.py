"""Markdown tables."""

from collections.abc import Iterable
from typing import Any


def markdown_table(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A markdown table. Pipes and line breaks inside a cell are escaped.

    Args:
        header: Titles of the columns.
        rows: Cells row by row, written with ``str``.
    """
    lines = [_line(header := list(header)), "|---" * len(header) + "|"]
    return "\n".join([*lines, *map(_line, rows)])


def _line(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"
