"""Markdown tables, and text from elsewhere (names of data sets, models, settings) that must not act as markdown."""

import html
import re
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


def markdown_table(header: Iterable[Any], rows: Iterable[Iterable[Any]], float_format: str = "") -> str:
    """A markdown table; an empty string if there are no rows. Pipes and line breaks inside a cell are escaped.

    Args:
        header: Titles of the columns.
        rows: Cells row by row, written with ``str``.
        float_format: Format of real numbers that are no integers, such as ``".4g"``; by default that of ``str``.
    """
    header, rows = list(header), list(rows)
    if not rows:
        return ""
    lines = [_line(header, float_format), "|---" * len(header) + "|"]
    return "\n".join([*lines, *(_line(row, float_format) for row in rows)])


def plain_text(value: Any) -> str:
    """A value as one line of text that markdown shows as it is: no HTML, links, code, headings or line breaks."""
    return re.sub(r"([\\`*\[\]])", r"\\\1", html.escape(_one_line(value), quote=False))


def code(value: Any) -> str:
    """A value as inline code of one line, whose backticks become apostrophes; an empty string for an empty value."""
    text = _one_line(value).replace("`", "'")
    return f"`{text}`" if text else ""


def _one_line(value: Any) -> str:
    printable = "".join(char if char.isprintable() else " " for char in str(value))
    return " ".join(printable.split())


def _line(cells: Iterable[Any], float_format: str) -> str:
    return f"| {' | '.join(_cell(cell, float_format) for cell in cells)} |"


def _cell(value: Any, float_format: str) -> str:
    is_float = isinstance(value, Real) and not isinstance(value, Integral)
    return (format(value, float_format) if is_float else str(value)).replace("|", "\\|").replace("\n", " ")
