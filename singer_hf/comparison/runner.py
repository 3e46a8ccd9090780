"""Runs all cells of a comparison, in one process or several, and writes the report."""

import importlib.util
import json
import multiprocessing
import os
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from singer_hf.comparison.cell_folder import CellFolder, cell_folder, reference_folder
from singer_hf.comparison.cells import run_cell, run_reference
from singer_hf.comparison.costs import step_costs
from singer_hf.comparison.figures.curves import curves_figure
from singer_hf.comparison.figures.intervals import methods_figure, paired_figure
from singer_hf.comparison.figures.sweep import sweep_figure
from singer_hf.comparison.study import Study, grid_name
from singer_hf.comparison.summary import summarise
from singer_hf.comparison.tables import comparison_markdown

# A job is a cell (method, seed) or a reference (name, model).
_Job = tuple[str, str, Any]


def run_study(study: Study, *, num_processes: int = 1, facts: dict[str, str] | None = None) -> dict[str, Any]:
    """Runs the unfinished cells and writes comparison.json, comparison.md and figures/*.png into the output folder.

    Args:
        study: The comparison.
        num_processes: Processes that run cells in parallel; GPUs, if there are any, are assigned in turn.
        facts: Name -> text for the head of the report, such as command, hardware and date.

    Returns:
        The content of comparison.json.

    Raises:
        RuntimeError: If cells failed. The others are finished and their results are kept.
        ValueError: If the output folder holds cells with other settings; nothing is run then.
    """
    jobs = [("reference", name, model) for name, model in _references(study).items()]
    jobs += [("cell", method, seed) for method, seed in study.cells()]
    for job in jobs:
        _folder_of(study, job).read_result()
    results, failures = [], []
    outcomes = _in_turn(study, jobs) if num_processes == 1 else _side_by_side(study, jobs, num_processes)
    for job, result, error in tqdm(outcomes, "cells", len(jobs), unit="cell"):
        if error is None:
            results.append((job, result))
        else:
            failures.append(f"{job[1]}, {job[2]}: {error}")
    if failures:
        raise RuntimeError(
            f"{len(failures)} of {len(jobs)} cells failed; run again to repeat them:\n" + "\n".join(failures)
        )
    return _report(study, dict(results), facts or {})


def _references(study: Study) -> dict[str, str]:
    references = {"teacher": study.teacher_name_or_path}
    if study.clean_teacher_name_or_path:
        references["unplanted teacher"] = study.clean_teacher_name_or_path
    return references


def _folder_of(study: Study, job: _Job) -> CellFolder:
    kind, name, what = job
    return (reference_folder if kind == "reference" else cell_folder)(study, name, what)


def _run_job(study: Study, job: _Job, quiet: bool) -> dict[str, Any]:
    kind, name, what = job
    return run_reference(study, name, what) if kind == "reference" else run_cell(study, name, what, quiet)


def _in_turn(study: Study, jobs: list[_Job]) -> Iterator[tuple[_Job, dict | None, str | None]]:
    for job in jobs:
        try:
            yield job, _run_job(study, job, quiet=False), None
        except Exception:
            yield job, None, traceback.format_exc()


def _side_by_side(
    study: Study, jobs: list[_Job], num_processes: int
) -> Iterator[tuple[_Job, dict | None, str | None]]:
    # Spawned processes inherit neither threads nor a GPU context.
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    settings = (context.Value("i", 0), threads, _visible_gpus())
    with ProcessPoolExecutor(num_processes, context, _start_worker, settings) as pool:
        futures = {pool.submit(_run_job, study, job, True): job for job in jobs}
        for future in as_completed(futures):
            error = future.exception()
            if error is None:
                yield futures[future], future.result(), None
            else:
                yield futures[future], None, "".join(traceback.format_exception(error))


def _visible_gpus() -> list[str]:
    """The GPUs of this process as CUDA_VISIBLE_DEVICES names them: indices or UUIDs."""
    count, listed = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(count)] if listed is None else [gpu.strip() for gpu in listed.split(",")][:count]


def _start_worker(counter: Any, threads: int, gpus: list[str]) -> None:
    with counter.get_lock():
        rank, counter.value = counter.value, counter.value + 1
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[rank % len(gpus)]
    torch.set_num_threads(threads)


def _report(study: Study, results: dict[_Job, dict], facts: dict[str, str]) -> dict[str, Any]:
    cells = [results["cell", method, seed] for method in study.methods for seed in study.seeds]
    references = {name: results["reference", name, model]["metrics"] for name, model in _references(study).items()}
    summary, costs = summarise(cells, baseline=study.baseline), _costs(study)
    content = {"facts": facts, "summary": summary, "step_costs": costs, "references": references, "cells": cells}
    folder = Path(study.output_dir)
    (folder / "comparison.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    page = comparison_markdown(
        summary, step_costs=costs, references=references, facts=facts, metric=_main_metric(summary)
    )
    (folder / "comparison.md").write_text(page, encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        print("no figures: matplotlib is not installed (pip install 'singer-hf[plots]')")
    else:
        _draw(study, cells, summary, folder / "figures")
    return content


def _main_metric(summary: dict[str, Any]) -> str:
    """The metric of sentences and figures: some students have no class token."""
    return "probe_cls" if "probe_cls" in summary["metrics"] else "probe_mean"


def _costs(study: Study) -> dict[str, float]:
    """Costs from step_costs.json, measured where they are missing: a repeated report shows the same costs."""
    if not study.num_cost_steps:
        return {}
    file = Path(study.output_dir) / "step_costs.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    settings = {name: cell_folder(study, name, seed=0).digest for name in study.methods}
    settings["baseline"] = study.baseline
    if not settings.items() <= known.get("settings", {}).items():
        known = {"settings": settings, "costs": step_costs(study, study.num_cost_steps)}
        file.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    return {name: known["costs"][name] for name in study.methods if name in known["costs"]}


def _draw(study: Study, cells: list[dict], summary: dict, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    figures, metric = {"methods": methods_figure(summary)}, _main_metric(summary)
    if study.baseline in study.methods and len(study.seeds) > 1 and len(study.methods) > 1:
        figures["paired"] = paired_figure(summary, metric)
    if study.num_evaluations:
        figures["curves"] = curves_figure(cells)
    if study.grid:
        (row, rows), (column, columns) = study.grid
        names = [[grid_name((row, column), (r, c)) for c in columns] for r in rows]
        if any(name in study.methods for line in names for name in line):
            labels = {"rows": (row, list(rows)), "columns": (column, list(columns))}
            figures["sweep"] = sweep_figure(summary, names, metric, **labels)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=130, bbox_inches="tight")
