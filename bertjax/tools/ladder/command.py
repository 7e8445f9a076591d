"""Run `bertjax ladder`: train what is not finished, score every rung, and write the table and the page."""

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bertjax.config.schema.ladder import Ladder, Rung
from bertjax.config.schema.run import Config
from bertjax.errors import DivergedError, UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.parallel.multihost import primary
from bertjax.report.pages.ladder import ladder_page
from bertjax.storage import atomic, remote
from bertjax.storage.files import resolve_path
from bertjax.tools.explore.analogies import Question
from bertjax.tools.explore.inputs import read_questions
from bertjax.tools.explore.words import default_questions
from bertjax.tools.ladder import scores, table
from bertjax.tools.ladder.pairs import Pair, read_pairs
from bertjax.tools.ladder.runs import RungRuns, build_runs, tokenizer_folder
from bertjax.training import inputs, loop, run_context

WORDS = ("king", "war", "water", "city", "music", "language", "year", "good")  # whose neighbours are shown


def ladder_command(config: Config, base: Path, as_json: bool) -> str:
    """Train the runs that are not finished, score them, and return the ladder as Markdown or JSON.

    Writes <run.name>-ladder.md, .json and .html to run.root. A run that diverges has no scores. Raises the errors of
    `loop.train`; UserError, before anything is written, for a configuration or data that do not fit.
    """
    every = build_runs(config)
    _refuse_other_pretraining(every)
    assert config.ladder is not None, "build_runs refuses a configuration without one"
    pairs = read_pairs(config.ladder.minimal_pairs, base) if config.ladder.minimal_pairs else []
    file = config.ladder.analogies
    questions = read_questions(resolve_path(file, base)) if file else default_questions()
    _check_data(config, every, base)
    with contextlib.redirect_stdout(sys.stderr):  # standard output is only for the table
        if config.tokenizer.path is None:
            run_context.load_tokenizer(config, base).save(remote.as_path(tokenizer_folder(config)))
        found = _train_and_score(config.ladder, every, base, pairs, questions)
    report = {"name": config.run.name, "seeds": config.ladder.seeds, "rungs": found, "notes": _notes(config, found)}
    texts = {"json": json.dumps(report, indent=2, ensure_ascii=False), "md": table.format_markdown(report)}
    texts["html"] = ladder_page(report, *table.table_cells(found), _bars(found))
    if primary.is_primary():
        for ending, text in texts.items():
            atomic.write_text_atomic(config.run_place.with_name(f"{config.run.name}-ladder.{ending}"), text + "\n")
    return texts["json" if as_json else "md"]


def _refuse_other_pretraining(every: Sequence[RungRuns]) -> None:
    """Raise UserError where tasks have begun from a pre-training that is no longer there."""
    for runs in every:
        begun = [run for run in runs.all() if run is not runs.pretraining and inputs.has_begun(run)]
        if begun and not inputs.has_begun(runs.pretraining):
            folders = ", ".join(str(run.run_place) for run in begun)
            raise UserError(
                f"{runs.pretraining.run_place}: has no checkpoint, but tasks have begun from one; put it back, or "
                f"delete {folders}"
            )


def _check_data(config: Config, every: Sequence[RungRuns], base: Path) -> None:
    """Check the data of all runs that are not begun, before the first is trained. Raises UserError with the run's name.

    Runs that read the same, as those of other seeds, are checked once. The shared vocabulary and the pre-trained models
    are not there yet.
    """
    seen = set()
    for run in (run for runs in every for run in runs.all() if not inputs.has_begun(run)):
        (stage,) = run.stages
        tokenizer = run.tokenizer.model_copy(update={"path": config.tokenizer.path})
        stages = [stage.model_copy(update={"init_from": "scratch"})]
        checked = run.model_copy(update={"tokenizer": tokenizer, "stages": stages})
        reads = checked.model_dump_json(exclude={"run"})
        if reads not in seen:
            seen.add(reads)
            try:
                inputs.check_prepare(checked, base)
            except UserError as error:
                raise UserError(f"run {run.run.name}: {error}") from None


def _train_and_score(
    ladder: Ladder, every: Sequence[RungRuns], base: Path, pairs: Sequence[Pair], questions: Sequence[Question]
) -> list[dict[str, Any]]:
    """A record of each rung: its facts, what each seed's pre-training reached, and the scores of its tasks."""
    records = {runs.rung.name: _record(runs.rung, runs.pretraining) for runs in every}
    for runs in every:
        record = records[runs.rung.name]
        if not _train(runs.pretraining, base, record):
            continue
        measured = scores.measure_pretraining(runs.pretraining, pairs, questions, ladder.words or WORDS)
        record["seeds"].append({"seed": runs.seed, "run": str(runs.pretraining.run_place)} | measured)
        for way, named in (("frozen", runs.frozen), ("tuned", runs.tuned)):
            for task, run in named.items():
                reached = scores.task_score(run) if _train(run, base, record) else None
                record[way].setdefault(task, []).append(reached)
    return list(records.values())


def _record(rung: Rung, run: Config) -> dict[str, Any]:
    """`objective` and `family` say what kind of model it is; `diverged` counts runs."""
    about = {"name": rung.name, "family": run.model.family, "objective": run.stages[0].objective.kind}
    return about | {"about": rung.about, "seeds": [], "frozen": {}, "tuned": {}, "diverged": 0}


def _train(run: Config, base: Path, record: dict[str, Any]) -> bool:
    """Train a run, or continue it; False if it diverged, which is counted."""
    try:
        loop.train(run, base, build_evaluators)
    except DivergedError as error:
        print(error, file=sys.stderr)
        record["diverged"] += 1
        return False
    return True


def _bars(rungs: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """{score: its values of each rung, one a seed}."""
    return {name: [table.values(rung, name) for rung in rungs] for name in table.columns(rungs)}


def _notes(config: Config, rungs: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = [table.NOTE]
    without = [rung.name for rung in config.ladder.rungs if rung.frozen is None] if config.ladder else []
    if without and len(config.stages) > 1:
        notes.append(f"Without frozen runs: {', '.join(without)}.")
    found = [one["analogies"] for rung in rungs for one in rung["seeds"]]
    if found:
        low, high = (pick(x["answered"] for x in found) for pick in (min, max))
        number = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        notes.append(
            f"Analogies are over the input vectors: {number} of {found[0]['questions']:,} questions have only words of "
            "the vocabulary."
        )
    scored = [one["minimal_pairs"] for rung in rungs for one in rung["seeds"] if one.get("minimal_pairs")]
    if scored:
        notes.append(
            f"Minimal pairs: {scored[0]['pairs']:,} of {len(scored[0]['paradigms'])} paradigms; the mean is over "
            "paradigms, equal scores count half. Scores: "
            + "; ".join(
                f"{rung['name']}: {rung['seeds'][0]['minimal_pairs']['score']}" for rung in rungs
                if rung["seeds"] and rung["seeds"][0].get("minimal_pairs")
            )
            + "."
        )  # fmt: skip
    return notes
