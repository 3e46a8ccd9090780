"""A comparison as a markdown page: facts, tables with intervals, and a sentence per method."""

from collections.abc import Mapping, Sequence

from singer_hf.cards.markdown import markdown_table
from singer_hf.comparison.metric_table import QUALITY, get_metric, in_order
from singer_hf.comparison.summary import excludes_zero, sentence, with_half_width

_TITLE = "# Comparison of methods"


def comparison_markdown(
    summary: Mapping,
    *,
    step_costs: Mapping[str, float],
    references: Mapping[str, Mapping[str, float | None]],
    facts: Mapping[str, str],
    metric: str = "probe_cls",
) -> str:
    """Returns the markdown page of a comparison.

    Args:
        summary: From :func:`singer_hf.comparison.summary.summarise`.
        step_costs: Method -> time of a training step divided by that of the baseline; may be empty.
        references: Name -> metrics of models that were not trained here, such as the teachers: rows without interval
            in the tables that show one of their metrics.
        facts: Name -> text of what is needed to repeat the comparison: command, seeds, hardware, data, steps, date.
        metric: Name of the metric of the sentences.
    """
    names = in_order([*summary["metrics"], *(name for metrics in references.values() for name in metrics)])
    quality = [name for name in names if name in QUALITY]
    parts = [_TITLE, "\n".join(f"- {name}: {text}" for name, text in facts.items())]
    parts += _section("## Quality", summary, quality, references, step_costs)
    parts += _paired_section(summary, quality)
    parts += _section("## Cleanliness", summary, [name for name in names if name not in QUALITY], references, {})
    parts += ["## In words", "\n".join(f"- {sentence(summary, method, metric)}" for method in summary["methods"])]
    parts += ["## How to read the intervals", _notes(summary)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _section(
    title: str,
    summary: Mapping,
    names: Sequence[str],
    references: Mapping[str, Mapping[str, float | None]],
    step_costs: Mapping[str, float],
) -> list[str]:
    if not names and not step_costs:
        return []
    rows = [
        [name, *(get_metric(column).text(metrics.get(column)) for column in names), *(["-"] if step_costs else [])]
        for name, metrics in references.items()
        if any(metrics.get(column) is not None for column in names)
    ]
    for method, spreads in summary["methods"].items():
        row = [method, *(_cell(spreads.get(column), column, len(summary["seeds"])) for column in names)]
        rows.append([*row, _cost(step_costs.get(method))] if step_costs else row)
    header = ["method", *map(_heading, names), *(["step cost ↓"] if step_costs else [])]
    return [title, markdown_table(header, rows), _legend(names, summary["baseline"] if step_costs else None)]


def _paired_section(summary: Mapping, names: Sequence[str]) -> list[str]:
    baseline = summary["baseline"]
    title = f"## Differences to {baseline} at equal seeds"
    if baseline not in summary["methods"]:
        return [title, f"None: there is no {baseline} among the methods."]
    names = [name for name in names if name in summary["methods"][baseline]]
    if not names or not summary["paired"]:
        return []
    rows = [
        [method, *(_paired_cell(spreads.get(name), name, len(summary["seeds"])) for name in names)]
        for method, spreads in summary["paired"].items()
    ]
    level = f"{100 * summary['level']:g} %"
    note = f"Method minus {baseline}, with the {level} interval; shares in points. Bold: the interval excludes 0."
    return [title, markdown_table(["method", *map(_heading, names)], rows), note]


def _heading(name: str) -> str:
    return f"{name} {get_metric(name).arrow}".strip()


def _legend(names: Sequence[str], baseline: str | None) -> str:
    entries = []
    for name in names:
        metric = get_metric(name)
        title = "" if metric.title == name else f": {metric.title}"
        entries.append(f"`{name}`{title}{' in %' if metric.percent else ''}{f' {metric.arrow}'.rstrip()}")
    if baseline is not None:
        entries.append(f"step cost: time of a training step relative to {baseline} ↓")
    return f"{'; '.join(entries)}. (↑ higher is better, ↓ lower is better)"


def _cell(spread: Mapping | None, name: str, seeds: int) -> str:
    if spread is None:
        return "-"
    return with_half_width(spread, get_metric(name)) + _count(spread, seeds)


def _count(spread: Mapping, seeds: int) -> str:
    return "" if spread["n"] == seeds else f" (n = {spread['n']})"


def _cost(cost: float | None) -> str:
    return "-" if cost is None else f"{cost:.2f}x"


def _paired_cell(spread: Mapping | None, name: str, seeds: int) -> str:
    if spread is None or not spread["n"]:
        return "-"
    metric = get_metric(name)
    text = metric.text(spread["mean"], signed=True)
    if spread["low"] is not None:
        text += f" [{metric.text(spread['low'])}, {metric.text(spread['high'])}]"
    text += _count(spread, seeds)
    return f"**{text}**" if excludes_zero(spread) else text


def _notes(summary: Mapping) -> str:
    level, compared = summary["level"], len(summary["paired"])
    notes = [
        f"`a ± b`: mean over seeds and half the width of its {100 * level:g} % Student t interval; a value without ± "
        "has no interval. `(n = ...)`: number of seeds with this metric, where some lack it.",
        "The intervals cover the variation over seeds only, not other teachers or other data.",
        "Each interval holds for one method and one metric; they are not corrected for the number of methods.",
    ]
    if compared > 1:
        notes[-1] += (
            f" With {compared} methods compared, intervals that hold jointly with {100 * level:g} % confidence "
            f"would have to be {100 * (1 - (1 - level) / compared):.4g} % intervals (Bonferroni)."
        )
    return "\n".join(f"- {note}" for note in notes)
