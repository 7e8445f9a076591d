"""Find the data of GLUE's tasks, in the official files, in folders of the Hub's data set or on the Hub; copy them.

A copy has the same fields wherever the data come from, so that the runs read one form, and remains what it was while
the runs last.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bertjax.config.schema.sources import HuggingFaceData, Parquet
from bertjax.data.preprocess.sampling import sample_items
from bertjax.data.sources.class_names import names_from_source
from bertjax.data.sources.record_files import LocatedRecords
from bertjax.data.sources.records import read_located
from bertjax.errors import UserError
from bertjax.progress import reporter
from bertjax.storage.atomic import replace_file, write_json_atomic
from bertjax.storage.files import sha256_of_files
from bertjax.storage.text import read_json
from bertjax.tools.glue import official
from bertjax.tools.glue.official import LeftOut, parse_label
from bertjax.tools.glue.tasks import AX, TASKS, GlueTask

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Split:
    """Records of a task in one form: (where, {texts, label, index}). `digest`: of their files; None on the Hub."""

    read: Callable[[LeftOut], LocatedRecords]
    digest: Callable[[], str] | None = None


@dataclass(frozen=True)
class TaskData:
    """The data of a task: `splits` by the names of GlueTask.splits, where they come from, and what is missing there."""

    task: GlueTask
    place: str
    splits: Mapping[str, Split]
    missing: tuple[str, ...] = ()  # tests, without which there is no submission


def find_data(data: str, names: Sequence[str], required: bool) -> tuple[list[TaskData], list[str]]:
    """-> (the data of the tasks, the tasks that a folder does not have).

    data: a folder with a folder for each task, or a name on the Hub. Raises UserError where nothing is found, where a
    task of the folder is incomplete, and for missing tasks if they are `required`.
    """
    folder = Path(data).expanduser()
    if not folder.exists():
        if data.startswith((".", "/", "~")) or data.count("/") > 1:
            raise UserError(f"--data: {data[:200]!a}: no such folder")
        return [_on_hub(data, TASKS[name]) for name in names], []
    if not folder.is_dir():
        raise UserError(f"--data: {data[:200]!a}: is a file; name the folder that holds CoLA, SST-2, ...")
    there = {_plain(path.name): path for path in sorted(folder.iterdir()) if path.is_dir()}
    found = [_in_folder(TASKS[name], there[name], there, folder) for name in names if name in there]
    missing = [name for name in names if name not in there]
    if missing and (required or not found):
        titles = ", ".join(TASKS[name].title for name in missing)
        inside = ", ".join(sorted(path.name for path in there.values()))[:100] or "no folders"
        raise UserError(f"--data: {folder}: has no folder for {titles}; it has: {inside}")
    return found, missing


def _plain(name: str) -> str:
    """sst2 of SST-2."""
    return name.lower().replace("-", "").replace("_", "")


def _on_hub(name: str, task: GlueTask) -> TaskData:
    def source(split: str) -> HuggingFaceData:
        config = AX if split == AX else task.name
        return HuggingFaceData(name=name, config=config, split="test" if split == AX else split)

    splits = {key: _from_source(task, source(split), split, Path.cwd()) for key, split in task.splits.items()}
    return TaskData(task, f"{name} ({task.name})", splits)


def _in_folder(task: GlueTask, folder: Path, all_folders: Mapping[str, Path], data: Path) -> TaskData:
    found: dict[str, Split] = {}
    for key, split in task.splits.items():
        places = (
            [folder] if split != AX else [*(all_folders[n] for n in ("diagnostic", AX) if n in all_folders), folder]
        )
        one = next((one for place in places if (one := _find_split(task, place, split)) is not None), None)
        if one is not None:
            found[key] = one
    absent = [split for key, split in task.splits.items() if key not in found]
    if needed := [split for split in ("train", *task.evaluations.values()) if split in absent]:
        names = " and ".join(official.FILE_NAMES[split] for split in needed)
        raise UserError(f"--data: {folder}: has no {names} (nor {needed[0]}-*.parquet, nor a saved data set)")
    return TaskData(task, str(folder), found, tuple(absent))


def _saved_splits(path: Path) -> list[str]:
    """The splits that `datasets` has saved. Raises UserError."""
    found = read_json(path)
    splits = found.get("splits", []) if isinstance(found, dict) else None
    if not isinstance(splits, list):
        raise UserError(f"{path}: does not list splits; save the data set again with save_to_disk")
    return splits


def _find_split(task: GlueTask, folder: Path, split: str) -> Split | None:
    """A split in a folder: saved by `datasets`, as Parquet files of the Hub, or official."""
    named = "test" if split == AX and _plain(folder.name) == AX else split
    if (folder / "dataset_dict.json").is_file():
        listed = _saved_splits(folder / "dataset_dict.json")
        source = HuggingFaceData(name=str(folder.absolute()), split=named)
        files = sorted(path for path in (folder / named).glob("*") if path.is_file())
        return _from_source(task, source, split, folder, files) if named in listed else None
    if parquet := sorted([*folder.glob(f"{named}-*.parquet"), *folder.glob(f"{named}.parquet")]):
        return _from_source(task, Parquet(files=[str(path.absolute()) for path in parquet]), split, folder, parquet)
    if split == AX:
        names = [name for name in official.AX_FILES if name != "test.tsv" or _plain(folder.name) != "mnli"]
        paths = [path for name in names if (path := folder / name).is_file()][:1]
    else:
        paths = official.find_split(task, folder, split)
    if not paths:
        return None
    return Split(lambda left_out: official.read_split(task, split, paths, left_out), lambda: sha256_of_files(paths))


def _from_source(
    task: GlueTask, source: Any, split: str, base: Path, files: Sequence[Path] | None = None
) -> Split:  # fmt: skip
    def read(left_out: LeftOut) -> LocatedRecords:
        names = names_from_source(source, base, "label")
        if task.labels and names is not None and names != task.labels:
            raise UserError(f"{task.title}: the labels are {', '.join(names)[:100]}, not {', '.join(task.labels)}")
        for position, (where, record) in enumerate(read_located(source, base)):
            texts = {name: record.get(name) for name in task.texts}
            if bad := next((name for name, text in texts.items() if not isinstance(text, str)), None):
                raise UserError(f"{where}: '{bad}' is missing or no text; GLUE's {task.title} has it")
            label, hidden = record.get("label"), split.startswith("test")
            if split == AX and label in (None, -1):
                hidden = True
            made = {} if hidden else {"label": parse_label(task, label, where)}
            yield where, texts | made | {"index": position}

    return Split(read, (lambda: sha256_of_files(list(files))) if files else None)


# ---- the copy -------------------------------------------------------------------------------------------------------


def count_rows(found: TaskData, folder: Path, limit: int | None) -> dict[str, int]:
    """Records of each split, of the copy in `folder` if there is one, without writing anything."""
    if (kept := _read_manifest(found, folder, limit)) is not None:
        return dict(kept["rows"])
    counts = {}
    for name, split in found.splits.items():
        with reporter.task(f"reading {found.task.title}: {name}", finish=False):
            count = sum(1 for _ in split.read(Counter()))
        counts[name] = count if limit is None or _is_test(found.task, name) else min(limit, count)
    return counts


def copy_data(found: TaskData, folder: Path, limit: int | None) -> dict[str, Any]:
    """Write SPLIT.jsonl files, unless they are there, and return the manifest {rows, left_out, missing, ...}.

    limit: most records of training and development, sampled. Raises UserError if the data have changed since the copy.
    """
    digests = {name: split.digest() for name, split in found.splits.items() if split.digest is not None}
    if (kept := _read_manifest(found, folder, limit)) is not None:
        if changed := [name for name, digest in digests.items() if kept["digests"].get(name, digest) != digest]:
            raise UserError(
                f"{found.place}: '{changed[0]}' has changed since {folder} was made of it; restore it, or name another "
                "--output"
            )
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    rows, left_out = {}, {}
    for name, split in found.splits.items():
        counter: LeftOut = Counter()
        located = split.read(counter)
        limited = limit if not _is_test(found.task, name) else None
        with reporter.task(f"copying {found.task.title}: {name}", finish=False):
            rows[name] = _write(folder / f"{name}.jsonl", sample_items(located, limited, seed=0))
        if rows[name] == 0:
            raise UserError(f"{found.place}: '{name}' holds no examples")
        if counter:
            left_out[name] = dict(counter)
            said = "; ".join(f"{count:,} {reason}" for reason, count in counter.items())
            reporter.say(f"{found.task.title}: {name}: left out: {said}")
    made: dict[str, Any] = {
        "source": found.place,
        "limit": limit,
        "rows": rows,
        "left_out": left_out,
        "missing": list(found.missing),
    }
    made["digests"] = digests
    write_json_atomic(folder / MANIFEST, made)
    return made


def _is_test(task: GlueTask, name: str) -> bool:
    return name in task.tests.values()


def _write(path: Path, located: LocatedRecords) -> int:
    count = 0
    with replace_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for _, record in located:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def _read_manifest(found: TaskData, folder: Path, limit: int | None) -> dict[str, Any] | None:
    """The manifest of the copy in `folder`; None without one, or if it is of other data or has another limit."""
    try:
        kept = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError):
        raise UserError(f"{folder / MANIFEST}: cannot be read; remove {folder}, which is made again") from None
    return kept if (kept.get("source"), kept.get("limit")) == (found.place, limit) else None


def read_copy(path: Path) -> list[dict[str, Any]]:
    """The records of a SPLIT.jsonl."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, None)]
