"""Run `bertjax glue`: check everything, copy the data, train what is not finished, then score, predict and report."""

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bertjax.config.loading.load import identity_diff, load_saved
from bertjax.config.loading.pretrained import read_model_fields
from bertjax.config.schema.model import FAMILIES
from bertjax.errors import DivergedError, UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.progress import reporter
from bertjax.report.pages.glue import write_glue_page
from bertjax.storage.atomic import write_json_atomic, write_text_atomic
from bertjax.tools.glue import data as glue_data
from bertjax.tools.glue import submission, tables
from bertjax.tools.glue.data import TaskData
from bertjax.tools.glue.results import Result, TaskSummary, averages, is_finished, read_result, summarize
from bertjax.tools.glue.runs import (
    DATA,
    INTERMEDIATE,
    Request,
    SubRun,
    check_options,
    make_runs,
    options_record,
    planned_steps,
    split_settings,
)  # fmt: skip
from bertjax.tools.glue.tasks import TASKS
from bertjax.training import loop
from bertjax.training.checkpoint.stage_files import run_stages

OPTIONS = "glue-options.json"
RESULTS = "glue"  # .json, .md and .html
BASE = Path()  # relative paths start at the current folder


def glue_command(request: Request, *, dry_run: bool = False, as_json: bool = False) -> str:
    """Train the runs that are not finished -> the results as text or JSON; with `dry_run` only the plan, as text.

    Writes glue.json, glue.md and glue.html to the output folder, and the test predictions to `submission/`. Raises the
    errors of `loop.train`; UserError, with nothing written, for options, data and settings that do not fit.
    """
    with contextlib.redirect_stdout(sys.stderr):  # standard output is only for the result
        found, missing, runs = _check(request)
        if dry_run:
            return _plan(request, found, missing, runs)
        if missing:
            reporter.say(f"no data, left out: {', '.join(TASKS[name].title for name in missing)}")
        request.output.mkdir(parents=True, exist_ok=True)
        write_json_atomic(request.output / OPTIONS, options_record(request))
        manifests = {one.task.name: _copy(request, one) for one in found}
        summaries: list[TaskSummary] = []
        for one in found:
            summaries.append(_train_task(request, one, runs[one.task.name], summaries))
            results = _write(request, summaries, missing, manifests)
        if request.submission != "none" and request.limit is None:
            made = submission.write_submission(
                summaries, request.submission, request.output / DATA, request.output / "submission"
            )
            results = _write(request, summaries, missing, manifests, made)
    return json.dumps(results, indent=2, ensure_ascii=False) if as_json else tables.format_results(results)


def _check(request: Request) -> tuple[list[TaskData], list[str], dict[str, list[SubRun]]]:
    """-> (the data, the tasks without, the runs of each task); nothing is written before."""
    names = request.tasks or tuple(TASKS)
    found, missing = glue_data.find_data(request.data, names, required=bool(request.tasks))
    there = [one.task.name for one in found]
    if unused := [task for task in split_settings(request.settings)[1] if task not in there]:
        raise UserError(f"command line: {unused[0]}.*: the task {TASKS[unused[0]].title} is not among those to run")
    if request.intermediate and "mnli" not in there:
        raise UserError("--intermediate mnli: needs the task mnli, whose model others start from")
    _check_start(request.init)
    if any(request.output.glob("*/config.yaml")):  # before a run has begun, everything may change
        check_options(request, request.output / OPTIONS)
    if request.intermediate:  # MNLI first
        found.sort(key=lambda one: one.task.name != "mnli")
    runs = {one.task.name: make_runs(request, one.task) for one in found}
    for task, listed in runs.items():
        if not (request.intermediate and task in INTERMEDIATE):  # theirs are known after MNLI; `loop.train` checks them
            _check_settings(listed)
    return found, missing, runs


def _check_start(name: str) -> None:
    """Raise UserError for a model that cannot be found or has no classifier. Reads only its small files."""
    try:
        family = read_model_fields(name)["family"]
    except UserError as error:
        raise UserError(f"--init: {error}") from None
    if "classifier" not in FAMILIES[family].heads:
        fitting = ", ".join(one for one, section in FAMILIES.items() if "classifier" in section.heads)
        raise UserError(f"--init: {name}: is a {family}, which has no classifier; name one of: {fitting}")


def _check_settings(runs: Sequence[SubRun]) -> None:
    for run in runs:
        kept = run.config.run_dir / "config.yaml"
        if kept.is_file() and (changed := identity_diff(load_saved(kept), run.config)):
            more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
            raise UserError(
                f"{kept}: this run has other settings ({'; '.join(line[:80] for line in changed[:2])}{more}); undo the "
                "change, or name another --output"
            )


def _copy(request: Request, found: TaskData) -> dict[str, Any]:
    return glue_data.copy_data(found, request.output / DATA / found.task.name, request.limit)


def _plan(request: Request, found: Sequence[TaskData], missing: Sequence[str], runs: Mapping[str, list[SubRun]]) -> str:
    rows = []
    for one in found:
        task, listed = one.task, runs[one.task.name]
        counts = glue_data.count_rows(one, request.output / DATA / task.name, request.limit)
        steps = [planned_steps(run, counts["train"]) for run in listed]
        rows.append({
            "task": task.title, "runs": [run.name for run in listed], "train": counts["train"],
            "heldout": " + ".join(f"{counts[name]:,}" for name in task.evaluations),
            "tests": " + ".join(f"{counts[name]:,}" for name in task.tests.values() if name in counts) or "none",
            "steps": "-".join(f"{n:,}" for n in sorted({min(steps), max(steps)})), "all_steps": sum(steps),
            "finished": sum(is_finished(run, BASE) for run in listed),
        })  # fmt: skip
    return tables.format_plan(rows, missing, request.limit)


def _train_task(
    request: Request, found: TaskData, runs: list[SubRun], before: Sequence[TaskSummary]
) -> TaskSummary:  # fmt: skip
    task = found.task
    if request.intermediate and task.name in INTERMEDIATE:
        runs = make_runs(request, task, _mnli_checkpoint(before))
    results = []
    for number, run in enumerate(runs, 1):
        if not is_finished(run, BASE):
            reporter.say(f"{task.title}: run {number} of {len(runs)}: {run.config.run_dir}")
        results.append(_train(request, run))
    if task.name == "mnli":
        data = request.output / DATA / task.name
        results = [_with_ax(one, data) if one.diverged is None else one for one in results]
    return summarize(task, results)


def _train(request: Request, run: SubRun) -> Result:
    try:
        if not is_finished(run, BASE):
            loop.train(run.config, BASE.absolute(), build_evaluators)
    except DivergedError as error:
        reporter.say(f"{run.name}: {error}")
        return Result(run, None, {}, diverged=str(error))
    return read_result(run, BASE, request.select)


def _with_ax(result: Result, data: Path) -> Result:
    scores = submission.score_ax(result, data)
    return result if scores is None else replace(result, more=scores)


def _mnli_checkpoint(summaries: Sequence[TaskSummary]) -> str:
    """The MNLI checkpoint with the median score."""
    mnli = next(one for one in summaries if one.task.name == "mnli")
    if not mnli.scored:
        raise DivergedError("MNLI: every run diverged, so nothing can start from its model; leave out --intermediate")
    chosen = mnli.chosen("median")
    (files,) = run_stages(chosen.run.config, BASE)
    assert chosen.step is not None
    return str(files.checkpoints.folder / str(chosen.step))


def _write(
    request: Request, summaries: Sequence[TaskSummary], missing: Sequence[str], manifests: Mapping[str, Any],
    made: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write glue.json, glue.md and glue.html of the tasks so far -> the content of glue.json."""
    listed = sorted(summaries, key=lambda one: list(TASKS).index(one.task.name))
    tasks = {
        one.task.name: one.as_json() | {key: manifests[one.task.name][key] for key in ("rows", "left_out", "source")}
        for one in listed
    }
    about: dict[str, Any] = {
        "init": request.init,
        "data": request.data,
        "seeds": list(request.seeds),
        "select": request.select,
    }
    about |= {"limit": request.limit, "missing": list(missing), "tasks": tasks, "averages": averages(listed)}
    about |= {"intermediate": list(INTERMEDIATE)} if request.intermediate else {}
    results = about | ({"submission": dict(made)} if made is not None else {})
    write_json_atomic(request.output / f"{RESULTS}.json", results, indent=2)
    write_text_atomic(request.output / f"{RESULTS}.md", tables.format_results(results) + "\n")
    write_glue_page(results, request.output / f"{RESULTS}.html")
    return results
