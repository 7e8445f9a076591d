"""Reads records of Hugging Face datasets and TensorFlow Datasets, imported when first used. No TensorFlow."""

import contextlib
import csv
import json
import re
from collections.abc import Callable, Iterator
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from bertjax.config.schema.slices import Slice, parse_split
from bertjax.config.schema.sources import HuggingFaceData, TfdsData
from bertjax.data.sources import record_files
from bertjax.data.sources.record_files import LocatedRecords
from bertjax.data.sources.registry import SourceKind
from bertjax.errors import UserError, brief
from bertjax.storage.files import UNSUPPORTED_SUFFIXES, content_suffix, resolve_path, sha256_of_files
from bertjax.storage.remote import is_remote

READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".txt": "text"}
TIMEOUT = 4.0  # seconds to wait for the Hub
# Features that TensorFlow Datasets has itself. It imports the module of every class that a features.json names.
_OWN_FEATURE = re.compile(r"tensorflow_datasets(\.[A-Za-z_]\w*)+")
_COMMUNITY = re.compile(r"[\w.-]+:(?!experimental_latest)[A-Za-z_]")  # community:name, unlike name:1.0.0
_CLASS_KEYS = ("pythonClassName", "type")  # the second one: before version 4.5


def _local_only(name: str | None) -> None:
    """Raise UserError for an object store, which the libraries cannot read."""
    if name and is_remote(name):
        raise UserError(f"{name}: data sets are read from a disk; copy it, or mount the bucket and name that folder")


def huggingface_records(source: HuggingFaceData, base: Path, field: str | None = None) -> LocatedRecords:
    """(where, record) of a `save_to_disk` folder, local data files, or a dataset on the Hub.

    Local files are read by `record_files`: `datasets` would convert cells such as "NA" and "007", and TSV quotes.
    A slice of a split (`train[:90%]`) is taken here for data on a disk and by `datasets` for those on the Hub.
    """
    name, part = _split(source)
    own = source.model_copy(update={"split": name})

    def read() -> LocatedRecords:
        files = _data_files(own, base)
        return _rows(own, base) if files is None else chain.from_iterable(files)

    if part is None or not resolve_path(source.name, base).exists():
        return _rows(source, base) if part else read()
    return _sliced(read, part, source)


def _split(source: HuggingFaceData) -> tuple[str, Slice | None]:
    try:
        return parse_split(source.split)
    except ValueError as error:
        raise UserError(f"{source.name}: split '{source.split}' {error}; correct it") from None


def _sliced(read: Callable[[], LocatedRecords], part: Slice, source: HuggingFaceData) -> LocatedRecords:
    total = sum(1 for _ in read()) if part.needs_total else None
    empty = True
    for found in islice(read(), *part.bounds(total)):
        empty = False
        yield found
    if empty:
        total = sum(1 for _ in read())
        held = f"holds {total:,} records, and split '{source.split}' takes none of them"
        raise UserError(f"{source.name}: {held}; choose another part")


def _data_files(source: HuggingFaceData, base: Path) -> list[LocatedRecords] | None:
    """Readers of the local files of the split; None if `datasets` has to read it."""
    _local_only(source.name)
    path = resolve_path(source.name, base)
    if path.is_file():
        if (found := record_files.read_by_suffix(path)) is None:
            raise UserError(f"{path}: cannot tell its format; known endings: {' '.join(READERS)}")
        return [found]
    if not path.is_dir() or _is_saved(path) or not any(path.iterdir()):
        return None
    import datasets

    try:
        builder = datasets.load_dataset_builder(str(path), source.config)
        names = list((builder.config.data_files or {}).get(source.split) or ())
    except Exception:  # noqa: BLE001  (`_load_local` meets the same error and reports it)
        return None
    if builder.name not in record_files.READERS_BY_BUILDER or builder.info.features is not None or not names:
        return None
    if any("::" in name or not Path(name).is_file() or Path(name).suffix in UNSUPPORTED_SUFFIXES for name in names):
        return None
    return [
        record_files.read_by_suffix(Path(name)) or record_files.READERS_BY_BUILDER[builder.name](Path(name))
        for name in names
    ]


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _rows(source: HuggingFaceData, base: Path) -> LocatedRecords:
    rows = iter(open_dataset(source, base))
    for number in count(1):
        where = f"{source.name}: split {source.split}: row {number}"
        try:
            record = next(rows, None)
        except Exception as error:  # noqa: BLE001  (reading is lazy: damage shows here, as any of many exceptions)
            raise UserError(f"{where}: unreadable ({brief(error)}); make the dataset again") from None
        if record is None:
            return
        yield where, record_files.to_python(dict(record), where)


def huggingface_fingerprint(source: HuggingFaceData, base: Path) -> str:
    """The content of the files of a local dataset; the library's fingerprint of one on the Hub."""
    _local_only(source.name)
    path = resolve_path(source.name, base)
    if path.exists():
        return _folder_hash(path)
    return str(open_dataset(source, base)._fingerprint)


def open_dataset(source: HuggingFaceData, base: Path) -> Any:
    _local_only(source.name)
    path = resolve_path(source.name, base)
    if path.is_dir() and _is_saved(path):
        return _load_saved(path, source.split)
    import datasets

    datasets.disable_progress_bars()
    if path.exists():
        return _load_local(path, source)
    if problem := missing_folder_message(source, base):
        raise UserError(problem)
    reachable = _hub_reachable()
    with contextlib.nullcontext() if reachable else _offline():
        try:
            builder = datasets.load_dataset_builder(source.name, source.config)
            tabs = getattr(builder.config, "sep", ",") == "\t"
            options = _csv_options(tabs) if builder.name == "csv" else {}
            return datasets.load_dataset(source.name, source.config, split=source.split, **options)
        except Exception as error:  # noqa: BLE001  (the library raises its own, requests' and Python's errors)
            reason = brief(error) if reachable else "the Hub is out of reach and it is not in the local cache"
            raise UserError(
                f"{source.name}: {reason}; check name, config and split, or save it where there is a network with "
                "Dataset.save_to_disk and give that folder as name"
            ) from None


def missing_folder_message(source: HuggingFaceData, base: Path) -> str | None:
    """Why a local data set cannot be found; None if it exists or may be on the Hub."""
    path = resolve_path(source.name, base)
    if path.exists() or not (source.name.startswith((".", "/", "~")) or Path(source.name).suffix in READERS):
        return None
    return f"{path}: no such file or folder; check the name (relative names start at {base.resolve()})"


def _load_saved(path: Path, split: str) -> Any:
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # noqa: BLE001
        raise UserError(f"{path}: cannot be loaded ({brief(error)}); save it again with save_to_disk") from None
    if not isinstance(found, datasets.DatasetDict):
        return found
    if split not in found:
        raise UserError(f"{path}: has no split '{split}'; it has: {', '.join(found)}")
    return found[split]


def _load_local(path: Path, source: HuggingFaceData) -> Any:
    import datasets

    try:
        if path.is_file():
            suffix = content_suffix(path)
            if suffix not in READERS:
                raise UserError(f"{path}: cannot tell its format; known endings: {' '.join(READERS)}")
            options = _csv_options(suffix == ".tsv") if READERS[suffix] == "csv" else {}
            kind = READERS[suffix]
            return datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True, **options)
        if not any(path.iterdir()):
            raise UserError(f"{path}: the folder is empty; give a folder with data files or one made by save_to_disk")
        return datasets.load_dataset(str(path), source.config, split=source.split, streaming=True)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001
        raise UserError(f"{path}: cannot be loaded ({brief(error)}); check its files, config and split") from None


def _csv_options(tabs: bool) -> dict[str, Any]:
    """Options that keep texts such as "null", "NA" and "None", and quotes in TSV files."""
    return {"keep_default_na": False} | ({"sep": "\t", "quoting": csv.QUOTE_NONE} if tabs else {})


def _hub_reachable() -> bool:
    """One short request by the library's own client; its loaders would retry for half a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception:  # noqa: BLE001  (OfflineModeIsEnabled, or any error of the HTTP library)
        return False
    return True


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Set the flags of both libraries, which read HF_HUB_OFFLINE only when they are imported."""
    import datasets
    import huggingface_hub

    flags = [(datasets.config, "HF_HUB_OFFLINE"), (huggingface_hub.constants, "HF_HUB_OFFLINE")]
    before = [getattr(module, name) for module, name in flags]
    for module, name in flags:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(flags, before, strict=True):
            setattr(module, name, value)


def tfds_records(source: TfdsData, base: Path, field: str | None = None) -> LocatedRecords:
    """(where, record) of a prepared split, read through the builder's data source."""
    builder = tfds_builder(source, base)
    try:
        rows = builder.as_data_source(split=source.split)
    except Exception as error:  # noqa: BLE001
        splits = ", ".join(builder.info.splits or {})
        if source.split.split("[")[0] not in (builder.info.splits or {}):
            raise UserError(f"{source.name}: has no split '{source.split}'; it has: {splits}") from None
        reason = brief(error)
        raise UserError(f"{source.name}: cannot be read ({reason}); prepare it with file_format=array_record") from None
    for number in range(len(rows)):
        where = f"{source.name}: split {source.split}: record {number + 1}"
        try:
            record = rows[number]
        except Exception as error:  # noqa: BLE001
            raise UserError(f"{where}: cannot be read ({brief(error)}); prepare the dataset again") from None
        yield where, record_files.to_python(record, where)


def tfds_fingerprint(source: TfdsData, base: Path) -> str:
    return _folder_hash(Path(tfds_builder(source, base).data_path))


def tfds_builder(source: TfdsData, base: Path) -> Any:
    import tensorflow_datasets as tfds

    _local_only(source.data_dir)
    folder = resolve_path(source.data_dir, base) if source.data_dir else None
    if problem := missing_data_dir_message(source, base):
        raise UserError(problem)
    _check_features(source.name, folder)
    try:
        if folder is not None and (folder / "dataset_info.json").is_file():
            builder = tfds.builder_from_directory(folder)
        else:
            builder = tfds.builder(source.name, data_dir=folder, try_gcs=False)
    except Exception as error:  # noqa: BLE001
        place = f" in {folder}" if folder else ""
        raise UserError(
            f"{source.name}: TensorFlow Datasets finds no such dataset{place} ({brief(error, 60)}); "
            "set data_dir to the folder that was prepared (with dataset_info.json)"
        ) from None
    if not Path(builder.data_path).is_dir():
        raise UserError(
            f"{source.name}: is not prepared in {builder.data_path}; run "
            f"'tfds build {source.name} --file_format=array_record' first, or set data_dir"
        )
    return builder


def _check_features(name: str, folder: Path | None) -> None:
    """Refuse a prepared data set whose features.json names code outside TensorFlow Datasets. Raises UserError."""
    from tensorflow_datasets.core.naming import camelcase_to_snakecase
    from tensorflow_datasets.core.utils.file_utils import list_data_dirs

    if _COMMUNITY.match(name):
        raise UserError(
            f"{name}: data sets of a community come with code, which is never run; prepare it and set data_dir"
        )
    if folder is not None and (folder / "dataset_info.json").is_file():
        found = [folder / "features.json"]
    else:
        folders = [Path(each) for each in list_data_dirs(given_data_dir=folder) if not is_remote(str(each))]
        inside = re.split("[/:]", name)[0]
        roots = [each / one for each in folders for one in {inside, camelcase_to_snakecase(inside)}]
        found = [path for root in roots for path in sorted(root.rglob("features.json"))]
    for path in filter(Path.is_file, found):
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: not readable as JSON ({brief(error)}); prepare the dataset again") from None
        waiting = [content]
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                for key in _CLASS_KEYS:
                    named = value.get(key)
                    if isinstance(named, str) and not _OWN_FEATURE.fullmatch(named):
                        raise UserError(
                            f"{path}: {key} {named[:80]!a} is code outside tensorflow_datasets, which is never run; "
                            "prepare the dataset again with features of tensorflow_datasets"
                        )
                waiting += value.values()
            elif isinstance(value, list):
                waiting += value


def missing_data_dir_message(source: TfdsData, base: Path) -> str | None:
    """Why `data_dir` cannot be found; None if it exists or is the library's own folder."""
    folder = resolve_path(source.data_dir, base) if source.data_dir else None
    if folder is None or folder.is_dir():
        return None
    return f"{folder}: tfds data_dir: no such folder; relative names start at {base.resolve()}"


def _folder_hash(path: Path) -> str:
    if path.is_file():
        return sha256_of_files([path])
    return sha256_of_files(sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")), root=path)


def _feature_names(features: Any, field: str) -> tuple[str, ...] | None:
    """The names of a ClassLabel, or of those in a list."""
    try:
        feature = features[field]
        names = getattr(feature, "names", None) or feature.feature.names  # of a list of labels
    except (KeyError, TypeError, AttributeError):
        return None
    return tuple(map(str, names)) if isinstance(names, list | tuple) and names else None


def _huggingface_label_names(source: HuggingFaceData, base: Path, field: str) -> tuple[str, ...] | None:
    path = resolve_path(source.name, base)
    if path.is_file():  # `datasets` is not asked about formats without features
        return record_files.parquet_label_names(path, field) if path.suffix == ".parquet" else None
    own = source.model_copy(update={"split": _split(source)[0]}) if path.exists() else source
    return _feature_names(getattr(open_dataset(own, base), "features", None), field)


HUGGINGFACE = SourceKind(
    content=huggingface_fingerprint,
    records=huggingface_records,
    find_problem=missing_folder_message,
    label_names=_huggingface_label_names,
)
TFDS = SourceKind(
    content=tfds_fingerprint,
    records=tfds_records,
    find_problem=missing_data_dir_message,
    label_names=lambda source, base, field: _feature_names(tfds_builder(source, base).info.features, field),
)
