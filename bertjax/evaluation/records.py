"""The record of an evaluation: what its scores are made from, and whether they are the run's own.

evaluations/<stage>/<name>.json is the run's record, written by training. An evaluation that differs from it (other
data, options, step or arithmetic) has files of its own, under `other/` there or where --output says.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertjax.config.schema.run import Config
from bertjax.errors import UserError
from bertjax.storage.nested import flatten
from bertjax.training.monitor.tracking import read_lines

OTHER_DIR = "other"  # folder, beside the run's own records, of evaluations that differ from them
UNKNOWN_PROVENANCE = {"by": "an earlier version"}  # of bertjax, which did not say what its scores were made from
_RUN_OPTIONS = ("seed", "compute_dtype", "attention")  # of `run`: those a score may depend on


@dataclass(frozen=True)
class EvaluationRecord:
    """Where the files of one evaluation go, and what is kept with its scores."""

    folder: Path
    name: str  # of the evaluation
    stem: str  # of its files
    provenance: Mapping[str, Any]
    differs: Mapping[str, Any] = field(default_factory=dict)  # from the run's record: key -> {"here", "run"}

    @property
    def path(self) -> Path:
        return self.folder / f"{self.stem}.json"

    def file_path(self, name: str) -> Path:
        """`name` is the evaluation's, or that with an ending such as .predictions."""
        return self.folder / f"{self.stem}{name.removeprefix(self.name)}.json"

    def summary(self, step: int) -> str:
        """Where the scores were written, for the person who asked for them."""
        head = f"{self.name}: kept in {self.path}"
        if not self.differs:
            return f"{head}, as the run keeps it"
        return f"{head}: {describe_provenance(step, self.differs)}; not the run's own score"

    def with_provenance(self, content: dict[str, Any]) -> dict[str, Any]:
        """The content of the scores' file, with what they are made from."""
        about = {"made_from": dict(self.provenance)} | ({"differs": dict(self.differs)} if self.differs else {})
        head = {key: value for key, value in content.items() if key != "samples"}
        return head | about | {key: content[key] for key in ("samples",) if key in content}


def diff_from_run(
    old: Config, new: Config, stage: int, evaluation: Any, kept: Mapping[str, Any], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """What sets an evaluation apart from the run's: dotted key -> {"here": value, "run": value}.

    old, new: the run's configuration, and the one that is evaluated. `kept`: `made_from` of the run's record, which
    may be empty; where it has the evaluation's section, that one counts instead of the one in `old`.
    """
    names = [stage_.name for stage_ in new.stages]
    before, after = _score_settings(old, stage), _score_settings(new, stage)
    head = f"stages.{names[stage]}.evaluate.{evaluation.name}"
    own = next((e.model_dump(mode="json") for e in old.stages[stage].evaluate if e.name == evaluation.name), None)
    own = kept.get("evaluation", own)
    if own is None:
        return {head: {"here": "given here", "run": None}} | _changed(before, after)
    found = _changed(
        before | flatten(own, prefix=f"{head}."), after | flatten(provenance["evaluation"], prefix=f"{head}.")
    )
    found.pop(f"{head}.every", None)  # when training evaluates; no score depends on it
    if "by" in kept:
        found["made by"] = {"here": "this version", "run": kept["by"]}
    same_source = not any(key.startswith(f"{head}.data.source") for key in found)
    for key, name in (("data", "data as they are read"), ("computed", "arithmetic")):
        if key in kept and kept[key] != provenance[key] and (same_source or key != "data"):
            found[name] = {"here": provenance[key], "run": kept[key]}
    return found


def _score_settings(config: Config, stage: int) -> dict[str, Any]:
    one = config.stages[stage]
    data = {"model": config.model.model_dump(mode="json")}
    data["run"] = config.run.model_dump(mode="json", include=set(_RUN_OPTIONS))
    data[f"stages.{one.name}"] = one.model_dump(mode="json", include={"objective", "trainable"})
    return flatten(data)


def _changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    return {key: {"here": after.get(key), "run": before.get(key)} for key in keys}


def last_recorded(run: Path, folder: Path, stage: str, name: str) -> tuple[int | None, dict[str, Any]]:
    """-> the last step at which the run scored this evaluation (None: never), and `made_from` of that score."""
    try:
        content = json.loads((folder / f"{name}.json").read_bytes())
    except (OSError, ValueError):
        content = {}
    content = content if isinstance(content, dict) else {}
    metrics = run / "metrics.jsonl"
    lines = read_lines(metrics) if metrics.is_file() else ()
    own = [x["step"] for x in lines if (x["kind"], x["stage"], x.get("name")) == ("eval", stage, name)]
    step = max(own, default=content.get("step"))
    provenance = content.get("made_from", UNKNOWN_PROVENANCE) if content and content.get("step") == step else {}
    return (step if isinstance(step, int) else None), provenance if isinstance(provenance, dict) else {}


def variant_stem(name: str, step: int, differs: Mapping[str, Any]) -> str:
    """The same for the same evaluation, so that repeating it replaces its files."""
    here = json.dumps({key: value["here"] for key, value in differs.items()}, sort_keys=True)
    return f"{name}-step{step}-{hashlib.sha256(here.encode()).hexdigest()[:8]}"


def output_paths(output: Path, names: list[str]) -> dict[str, tuple[Path, str]]:
    """Folder and stem of the files of each evaluation, where --output names a folder, or a .json file for one."""
    if output.suffix != ".json" or output.is_dir():
        return {name: (output, name) for name in names}
    if len(names) > 1:
        several = ", ".join(names)
        raise UserError(
            f"{output}: a file takes one evaluation, and there are {several}; give --name, or name a folder"
        )
    return {name: (output.parent, output.stem) for name in names}


def check_writable(folder: Path) -> None:
    """Makes the folder. Raises UserError where that, or writing in it, is refused."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name a folder with --output") from None


def is_writable(folder: Path) -> bool:
    """Whether the folder, or where it is missing the nearest one above it, can be written."""
    there = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    return os.access(there, os.W_OK)


def describe_provenance(step: int | None, differs: Mapping[str, Any]) -> str:
    """What an evaluation was made from, for people: `from step 20 with key = value (the run: value)`."""
    changes = [_describe_change(key, value) for key, value in differs.items() if key != "step"]
    more = f" and {len(changes) - 4} more" if len(changes) > 4 else ""
    text = "from an unknown step" if step is None else f"from step {step:,}"
    if "step" in differs:
        run = differs["step"]["run"]
        text += " (the run's own score is " + ("not recorded)" if run is None else f"from step {run:,})")
    return text + (f" with {', '.join(changes[:4])}{more}" if changes else "")


def _describe_change(key: str, value: Mapping[str, Any]) -> str:
    if value["run"] is None and value["here"] == "given here":
        return f"{key}, which is not in the run's configuration"
    here, run = (json.dumps(value[side], ensure_ascii=False) for side in ("here", "run"))
    return f"{key} = {here:.80} (the run: {run:.80})"
