"""Provenance of scores. Training writes the run's record, evaluations/<stage>/<name>.json; an evaluation that differs
from it (data, options, step or arithmetic) has its own files, in `other/` of that folder or in --output."""

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
from bertjax.storage.text import read_bytes
from bertjax.training.monitor.tracking import read_lines

OTHER_DIR = "other"  # folder of evaluations that differ from the run's own records
UNKNOWN_PROVENANCE = {"by": "an earlier version"}  # of bertjax, which recorded no provenance
_RUN_OPTIONS = ("seed", "compute_dtype", "dense_dtype", "attention")  # options of `run` that a score may depend on


@dataclass(frozen=True)
class EvaluationRecord:
    """The files of an evaluation, and the provenance saved with its scores."""

    folder: Path
    name: str  # of the evaluation
    stem: str  # of its files
    provenance: Mapping[str, Any]
    differs: Mapping[str, Any] = field(default_factory=dict)  # from the run's record: key -> {"here", "run"}

    @property
    def path(self) -> Path:
        return self.folder / f"{self.stem}.json"

    def file_path(self, name: str) -> Path:
        """`name`: of the evaluation, possibly with a suffix such as .predictions."""
        return self.folder / f"{self.stem}{name.removeprefix(self.name)}.json"

    def summary(self, step: int) -> str:
        """One line for the user: where the scores were written."""
        head = f"{self.name}: kept in {self.path}"
        if not self.differs:
            return f"{head}, as the run keeps it"
        return f"{head}: {describe_provenance(step, self.differs)}; not the run's own score"

    def with_provenance(self, content: dict[str, Any]) -> dict[str, Any]:
        """The content of the score file with its provenance."""
        about = {"made_from": dict(self.provenance)} | ({"differs": dict(self.differs)} if self.differs else {})
        head = {key: value for key, value in content.items() if key != "samples"}
        return head | about | {key: content[key] for key in ("samples",) if key in content}


def diff_from_run(
    old: Config, new: Config, stage: int, evaluation: Any, kept: Mapping[str, Any], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Differences from the run's own evaluation: dotted key -> {"here": value, "run": value}.

    old, new: configurations of the run and of this evaluation. kept: `made_from` of the run's record or {}; its section
    of the evaluation takes precedence over that in `old`.
    """
    names = [stage_.name for stage_ in new.stages]
    before, after = _score_settings(old, stage), _score_settings(new, stage)
    head = f"stages.{names[stage]}.evaluate.{evaluation.name}"
    own = next((e.model_dump(mode="json") for e in old.stages[stage].evaluate if e.name == evaluation.name), None)
    own = kept.get("evaluation", own)
    if own is None:
        return {head: {"here": "given here", "run": None}} | _changed(before, after)
    before |= flatten(own, prefix=f"{head}.")
    found = _changed(before, after | flatten(provenance["evaluation"], prefix=f"{head}."))
    found.pop(f"{head}.every", None)  # the schedule of evaluations does not affect scores
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
    """-> the last step at which the run ran this evaluation (None: never), and `made_from` of that score."""
    try:
        content = json.loads(read_bytes(folder / f"{name}.json"))
    except (OSError, ValueError, RecursionError):
        content = {}
    content = content if isinstance(content, dict) else {}
    metrics = run / "metrics.jsonl"
    lines = read_lines(metrics) if metrics.is_file() else ()
    own = [x["step"] for x in lines if (x["kind"], x["stage"], x.get("name")) == ("eval", stage, name)]
    step = max(own, default=content.get("step"))
    provenance = content.get("made_from", UNKNOWN_PROVENANCE) if content and content.get("step") == step else {}
    return (step if isinstance(step, int) else None), provenance if isinstance(provenance, dict) else {}


def variant_stem(name: str, step: int, differs: Mapping[str, Any]) -> str:
    """The stem of the files of a differing evaluation; repeating the evaluation replaces them."""
    here = json.dumps({key: value["here"] for key, value in differs.items()}, sort_keys=True)
    return f"{name}-step{step}-{hashlib.sha256(here.encode()).hexdigest()[:8]}"


def output_paths(output: Path, names: list[str]) -> dict[str, tuple[Path, str]]:
    """Folder and stem of the files of each evaluation; --output is a folder, or a .json file for one evaluation."""
    if output.suffix != ".json" or output.is_dir():
        return {name: (output, name) for name in names}
    if len(names) > 1:
        several = f"a file is for one evaluation, but there are {', '.join(names)}"
        raise UserError(f"{output}: {several}; give --name, or name a folder")
    return {name: (output.parent, output.stem) for name in names}


def check_writable(folder: Path, option: str = "--output") -> None:
    """Creates the folder, which `option` names. Raises UserError when it cannot be created or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name a folder with {option}") from None


def is_writable(folder: Path) -> bool:
    """Whether the folder, or its nearest existing parent, can be written."""
    there = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    return os.access(there, os.W_OK)


def describe_provenance(step: int | None, differs: Mapping[str, Any]) -> str:
    """Provenance as text: `from step 20 with key = value (the run: value)`."""
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


def describe_fit(scored: Mapping[str, Any]) -> list[str]:
    """Lines for the user about the threshold in the content of a score file: where it is from, what its scores mean."""
    used, own, other = (scored.get(key) for key in ("null_threshold", "fitted", "fitted_by"))
    if not isinstance(used, float):
        return []
    if isinstance(other, Mapping):
        provenance = scored.get("made_from")
        same = isinstance(provenance, Mapping) and other.get("data") == provenance.get("data")
        where = "these same data: not an estimate for new ones" if same else "other data"
        return [f"null threshold {used:.4g}, swept on {where} ({other.get('questions')} questions)"]
    if isinstance(own, Mapping) and isinstance(best := own.get("null_threshold"), float):
        scores = (own.get("best_f1"), scored.get("scores", {}).get("f1"))
        best_f1, f1 = (f"{score:.2f}" if isinstance(score, float) else "unknown" for score in scores)
        return [
            f"the best null threshold on these data is {best:.4g}: F1 {best_f1}, not an estimate for new data; "
            f"with {used:.4g}, which was used, F1 {f1}"
        ]
    return []
