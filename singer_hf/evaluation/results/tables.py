"""Results as markdown tables."""

from collections.abc import Iterable, Sequence

from singer_hf.cards.markdown import markdown_table
from singer_hf.evaluation.benchmarks.catalog import mean_metrics
from singer_hf.evaluation.metrics import TASK_METRICS, greater_is_better
from singer_hf.evaluation.results.result import Result


def results_table(results: Sequence[Result]) -> str:
    """Returns a markdown table: a row per model, a column per benchmark with its 95 % interval, and the means."""
    main = [result for result in results if result.is_main]
    columns = {result.column: result for result in main}
    means = mean_values(results)
    names = list(dict.fromkeys(name for values in means.values() for name in values))
    header = ["model", "parameters", *(_title(result, columns) for result in columns.values()), *names]
    rows = []
    for model in dict.fromkeys(result.model for result in main):
        own = {result.column: result for result in main if result.model == model}
        size = next(iter(own.values())).num_parameters
        cells = [_cell(own[column]) if column in own else "-" for column in columns]
        cells += [f"{means[model][name]:.3f}" if name in means[model] else "-" for name in names]
        rows.append((model, f"{size / 1e6:.3g} M", *cells))
    return markdown_table(header, rows)


def mean_values(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Computes the means of :data:`singer_hf.evaluation.benchmarks.catalog.MEANS`, never over several protocols.

    Returns:
        Name of the model -> name of the mean -> value; with several protocols the name has the protocol.
    """
    main = [result for result in results if result.is_main]
    kinds = dict.fromkeys((result.protocol, result.task == "knn") for result in main)
    means: dict[str, dict[str, float]] = {result.model: {} for result in main}
    for model, values in means.items():
        for protocol, by_neighbors in kinds:
            own = [r for r in main if (r.model, r.protocol, r.task == "knn") == (model, protocol, by_neighbors)]
            suffix = f" ({protocol}{', kNN' if by_neighbors else ''})" if len(kinds) > 1 else ""
            found = mean_metrics({result.benchmark: result.value for result in own})
            values.update({f"{name}{suffix}": value for name, value in found.items()})
    return means


def _title(result: Result, columns: Iterable[tuple[str, str, str]]) -> str:
    protocols = {protocol for benchmark, _, protocol in columns if benchmark == result.benchmark}
    suffix = f" ({result.protocol})" if len(protocols) > 1 else ""
    return f"{result.benchmark} {result.metric} {_arrow(result.metric)}{suffix}"


def all_metrics_table(results: Iterable[Result]) -> str:
    """Returns a markdown table with a row per metric."""
    header = ("model", "benchmark", "metric", "value", "95 % interval", "n", "head", "protocol", "changes")
    rows = []
    for item in results:
        changes = ", ".join(f"{name}={value}" for name, value in item.changes.items()) or "-"
        row = (item.model, item.benchmark, f"{item.metric} {_arrow(item.metric)}", f"{item.value:.4f}")
        row += (f"{item.low:.4f} to {item.high:.4f}", item.n, item.head, item.protocol, changes)
        rows.append(row)
    return markdown_table(header, rows)


def metric_descriptions(results: Iterable[Result]) -> str:
    """Returns a markdown list with the description of the metrics of each task."""
    tasks = dict.fromkeys(result.task for result in results)
    return "\n".join(f"- {task}: {TASK_METRICS[task].description}" for task in tasks)


def _cell(result: Result) -> str:
    return f"{result.value:.3f} ({result.low:.3f} to {result.high:.3f})"


def _arrow(metric: str) -> str:
    return "↑" if greater_is_better(metric) else "↓"
