"""Runs jobs as Apache Beam pipelines. Imported only where Beam is installed.

Shared values and large arguments of jobs are written to files, since Dataflow accepts pipelines of up to 10 MB.
"""

import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from bertjax.config.loading import plugins
from bertjax.data.jobs.jobs import JobRecord, Jobs, Shuffle, load_finished, read_record, run_job
from bertjax.data.jobs.scratch_dir import KEPT_MESSAGE
from bertjax.errors import BertjaxError, StorageError, UserError
from bertjax.storage import remote
from bertjax.storage.atomic import write_bytes_atomic

# Beam's default first tries to download a runner; this one is part of the Python package.
LOCAL_BEAM_RUNNER = "FnApiRunner"
MAX_INLINE_BYTES = 256  # larger arguments are written to files
RECORDS_PER_READ = 64  # records that are read at once

Element = tuple[int, str | bytes]  # a job's number, and its argument or the path of its file


class _Spec(NamedTuple):
    """The content of the file that all workers read; `arguments` only for jobs that a shuffle feeds."""

    jobs: Jobs
    shuffle: Shuffle | None
    arguments: dict[int, Any]


class BeamRunner:
    """Runs jobs in Beam pipelines, one for each kind of job. UserError for `args` that Beam does not know."""

    is_distributed = True

    def __init__(self, args: Sequence[str], workers: int = 1) -> None:
        flags = list(args)
        if PipelineOptions(flags).view_as(StandardOptions).runner is None:
            mode = "multi_processing" if workers > 1 else "in_memory"
            local = f"--runner={LOCAL_BEAM_RUNNER}", f"--direct_num_workers={workers}", f"--direct_running_mode={mode}"
            flags = [*local, *flags]
        known = PipelineOptions(flags).get_all_options(current_only=False)
        every = PipelineOptions(flags).get_all_options(retain_unknown_options=True)
        if unknown := sorted(every.keys() - known.keys()):
            raise UserError(f"--runner beam: Beam has no option --{unknown[0][:60]}; see its pipeline options")
        self._flags = flags

    def run(
        self, jobs: Jobs, arguments: Iterable[Any], *, workers: int, shuffle: Shuffle | None = None
    ) -> Iterator[JobRecord]:
        if shuffle:
            yield from self._shuffled(jobs, list(arguments), shuffle)
            return
        spec, before = _write_pickle(_pickle_path(jobs, "jobs"), _Spec(jobs, None, {})), _recorded_indices(jobs)
        if elements := [_element(jobs, *each) for each in enumerate(arguments)]:
            self._map("make the files", elements, _Prepare(spec))
            yield from _records(jobs, [index for index, _ in elements], before)

    def _shuffled(self, jobs: Jobs, arguments: list[Any], shuffle: Shuffle) -> Iterator[JobRecord]:
        spec = _write_pickle(_pickle_path(jobs, "jobs"), _Spec(jobs, None, {}))
        if done := [(index, b"") for index in sorted(_recorded_indices(jobs)) if index < len(arguments)]:
            self._map("look at what is there", done, _Check(spec))
        there = _recorded_indices(jobs)
        if missing := {index: argument for index, argument in enumerate(arguments) if index not in there}:
            spec = _write_pickle(_pickle_path(jobs, "shuffled"), _Spec(jobs, shuffle, missing))

            def build(pipeline: beam.Pipeline) -> None:
                parts = pipeline | "parts" >> beam.Create(range(shuffle.num_parts), reshuffle=False)
                pieces = parts | "spread the parts" >> beam.Reshuffle() | "cut" >> beam.ParDo(_ShufflePieces(spec))
                pieces | "to their jobs" >> beam.GroupByKey() | "make the files" >> beam.ParDo(_PrepareShuffled(spec))

            self._execute(build)
        yield from _records(jobs, list(range(len(arguments))), there)

    def _map(self, label: str, elements: Sequence[Element], function: beam.DoFn) -> None:
        def build(pipeline: beam.Pipeline) -> None:
            created = pipeline | "jobs" >> beam.Create(elements, reshuffle=False)
            created | "spread the jobs" >> beam.Reshuffle() | label >> beam.ParDo(function)

        self._execute(build)

    def _execute(self, build: Callable[[beam.Pipeline], None]) -> None:
        try:
            with beam.Pipeline(options=PipelineOptions(self._flags)) as pipeline:
                build(pipeline)
        except BertjaxError:
            raise
        except Exception as error:  # noqa: BLE001  (runners raise any exception; details are in their logs)
            reason = " ".join(str(error).split())[:150] or type(error).__name__
            raise StorageError(f"Beam: the pipeline failed ({reason}); {KEPT_MESSAGE}") from error


class _WithSpec(beam.DoFn):
    def __init__(self, path: str) -> None:
        self._path = path
        self._plugins = [plugin.place for plugin in plugins.loaded()]

    def setup(self) -> None:
        plugins.load_plugins(*self._plugins)  # the spec may contain their classes
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # Beam has a process for each core
        self._spec: _Spec = _read_pickle(self._path)


class _Prepare(_WithSpec):
    def process(self, element: Element) -> None:
        _make(self._spec.jobs, element[0], lambda: _argument(element))


class _Check(_WithSpec):
    def process(self, element: Element) -> None:
        if load_finished(self._spec.jobs, element[0]) is None:
            remote.remove(self._spec.jobs.record_path(element[0]))


class _ShufflePieces(_WithSpec):
    def process(self, part: int) -> Iterator[tuple[int, Any]]:
        assert self._spec.shuffle
        return (found for found in self._spec.shuffle.pieces(part) if found[0] in self._spec.arguments)


class _PrepareShuffled(_WithSpec):
    def process(self, element: tuple[int, Iterable[Any]]) -> None:
        index, pieces = element
        jobs, shuffle, arguments = self._spec
        assert shuffle
        shared = shuffle.shared_for_job(jobs.shared, index, pieces)
        _make(replace(jobs, shared=shared), index, lambda: arguments[index])


def _make(jobs: Jobs, index: int, argument: Callable[[], Any]) -> None:
    """Runs a job. An error in the data is written to a file; a retry, as Beam does, would not help."""
    try:
        run_job(jobs, index, argument())
    except UserError as error:
        write_bytes_atomic(_error_path(jobs, index), str(error).encode(), parents=True)


def _pickle_path(jobs: Jobs, name: str) -> Path:
    return jobs.records.parent / "beam" / f"{jobs.records.name}-{name}.pkl"


def _error_path(jobs: Jobs, index: int) -> Path:
    return _pickle_path(jobs, f"{index:05d}").with_suffix(".error")


def _write_pickle(path: Path, content: Any) -> str:
    write_bytes_atomic(path, pickle.dumps(content), parents=True)
    return str(path)


def _read_pickle(name: str) -> Any:
    """The content of a file that the process which started the pipeline wrote."""
    path = remote.as_path(name)
    with remote.remote_errors(path):
        return pickle.loads(path.read_bytes())


def _element(jobs: Jobs, index: int, argument: Any) -> Element:
    data = pickle.dumps(argument)
    if len(data) <= MAX_INLINE_BYTES:
        return index, data
    path = _pickle_path(jobs, f"{index:05d}")
    write_bytes_atomic(path, data, parents=True)
    return index, str(path)


def _argument(element: Element) -> Any:
    if isinstance(element[1], bytes):
        return pickle.loads(element[1])
    return _read_pickle(element[1])


def _recorded_indices(jobs: Jobs) -> set[int]:
    """The jobs that have a record."""
    with remote.remote_errors(jobs.records):
        names = [path.name for path in jobs.records.iterdir()] if jobs.records.is_dir() else []
    return {int(name.removesuffix(".json")) for name in names if name.endswith(".json") and name[0] != "."}


def _records(jobs: Jobs, indices: list[int], before: set[int]) -> Iterator[JobRecord]:
    """The records, in order, of finished jobs; those in `before` are reused. Raises the first error."""
    there = _recorded_indices(jobs)
    for index in indices:
        if index not in there:
            complaint = _error_path(jobs, index)
            if remote.file_size(complaint) is None:
                raise StorageError(f"{jobs.record_path(index)}: the pipeline left no such record; {KEPT_MESSAGE}")
            with remote.remote_errors(complaint):
                raise UserError(complaint.read_bytes().decode())
    for start in range(0, len(indices), RECORDS_PER_READ):
        some = indices[start : start + RECORDS_PER_READ]
        for index, record in zip(some, remote.map_threaded(lambda index: read_record(jobs, index), some), strict=True):
            if record is None:
                raise StorageError(f"{jobs.record_path(index)}: cannot be read; {KEPT_MESSAGE}")
            yield record._replace(reused=index in before)
