"""`bertjax verify-run`: read every checkpoint of a run, and its small files, and compare them with their digests."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bertjax.config.loading.load import build_saved, identity_diff, load_saved
from bertjax.data.tokenizers import files as tokenizer_files
from bertjax.data.tokenizers import load
from bertjax.errors import StorageError, UserError
from bertjax.progress.text import size
from bertjax.storage import mirror, remote, remote_folder
from bertjax.training.checkpoint.integrity import CorruptStepError
from bertjax.training.checkpoint.locate import CheckpointRef, find, list_complete_steps, stage_folders
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.monitor.tracking import count_damaged_lines

FILES = ("config.yaml", "tokenizer", "metrics.jsonl")


@dataclass(frozen=True)
class Finding:
    """What was found about one checkpoint or file; `problem` is None if it is as it was written."""

    path: str
    problem: str | None
    about: str = ""

    def line(self) -> str:
        return f"{self.path}: {f'DAMAGED: {self.problem}' if self.problem else f'good{self.about}'}"


def verify_run_command(path: str | Path, as_json: bool = False) -> tuple[Any, bool]:
    """Verify a run, one stage's checkpoints or one step -> (lines or findings to print, whether all are good).

    Nothing is changed or moved. Raises UserError where there is no checkpoint.
    """
    place = remote.as_path(path)
    stages = stage_folders(place)
    findings: list[Finding] = []
    newest: Mapping[str, Any] | None = None
    readers = [CheckpointReader(stage) for stage in stages] or [_reader(place)]
    for reader in readers:
        for step in reader.committed_steps() if reader.ref.step is None else [reader.ref.step]:
            findings.append(_verify_step(reader, step))
            newest = newest if findings[-1].problem else reader.items(step)[1]
    if not findings:
        raise UserError(f"{path}: holds no checkpoint; is it a run folder, and has the run saved one yet?")
    steps = len(findings)
    findings += _verify_files(place, newest) if stages else []
    bad = sum(finding.problem is not None for finding in findings)
    if as_json:
        return [asdict(finding) for finding in findings], not bad
    files = f" and {len(findings) - steps} files" if len(findings) > steps else ""
    total = f"{steps} checkpoint{'s' * (steps > 1)}{files}: {f'{bad} DAMAGED' if bad else 'all good'}"
    return "\n".join([*(finding.line() for finding in findings), total]), not bad


def _reader(place: Path) -> CheckpointReader:
    """The reader of a stage's checkpoints or of one step. Raises UserError where there is none."""
    if not remote.is_remote(place):
        return CheckpointReader(find(place))
    if list_complete_steps(place):
        return CheckpointReader(place)
    if place.name.isdecimal() and int(place.name) in list_complete_steps(place.parent):
        return CheckpointReader(CheckpointRef(place.parent, int(place.name)))
    raise UserError(f"{place}: {remote_folder.why_nothing(place)}")


def _verify_step(reader: CheckpointReader, step: int) -> Finding:
    path = str(reader.step_path(step))
    try:
        arrays, read = reader.verify(step)
    except CorruptStepError as error:
        return Finding(path, str(error).replace(f"{reader.folder}/", "")[:160])
    except StorageError as error:
        return Finding(path, str(error).removeprefix(f"{path}: ")[:160])
    return Finding(path, None, f" ({arrays} arrays, {size(read)})")


def _verify_files(run: Path, meta: Mapping[str, Any] | None) -> Iterator[Finding]:
    """Verify config.yaml and tokenizer/ by the meta data of the newest good checkpoint, and metrics.jsonl."""
    with tempfile.TemporaryDirectory() as folder:
        local = run
        if remote.is_remote(run):
            local = Path(folder, run.name)
            mirror.Mirror(run, local).fetch(only=FILES)
        config, tokenizer, metrics = (local / name for name in FILES)
        if meta is not None:
            yield Finding(str(run / config.name), _config_problem(config, meta))
            yield Finding(str(run / tokenizer.name), _tokenizer_problem(tokenizer, meta))
        if metrics.is_file():
            damaged, lines = count_damaged_lines(metrics)
            problem = f"{damaged} of {lines} lines" if damaged else None
            yield Finding(str(run / metrics.name), problem, f" ({lines} lines)")


def _config_problem(path: Path, meta: Mapping[str, Any]) -> str | None:
    try:
        changed = identity_diff(build_saved(meta["config"], where=str(path)), load_saved(path))
    except UserError as error:
        return str(error).splitlines()[0].removeprefix(f"{path}:").strip()[:160]
    return f"not what the checkpoints were made with ({changed[0][:80]})" if changed else None


def _tokenizer_problem(folder: Path, meta: Mapping[str, Any]) -> str | None:
    if tokenizer_files.is_intact(folder) is False:
        return "its files are not what was saved"
    try:
        same = load.from_file(folder).sha256 == meta["tokenizer_sha256"]
    except UserError as error:
        return str(error).removeprefix(f"{folder}: ")[:160]
    return None if same else "it is not that of the checkpoints"
