"""The record of a kind of preprocessing: everything the program asks of a kind, found by its configuration section."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bertjax.config.schema import base as schema
from bertjax.config.schema.data import Task
from bertjax.data.jobs.job_plan import JobPlan, PrepareContext
from bertjax.data.sources.class_names import ClassSpec

if TYPE_CHECKING:
    from bertjax.data.preprocess.masking import StaticMasker

# (fields of stored rows {name: [n, ...]}, seed=, epoch= [n], indices= [n]) -> {name: [n, ...]}; a pure function.
Transform = Callable[..., dict[str, np.ndarray]]


@dataclass(frozen=True)
class Preview:
    """A task whose first records are checked before anything is prepared (`pipeline.preview`)."""

    task: Task
    base: Path
    classes: ClassSpec | None = None  # of a classification; None where they are not known yet
    training: bool = True  # else the rows are for an evaluation


@dataclass(frozen=True)
class PreprocessKind:
    """Functions and facts of one kind. `options` is always the kind's own section of the configuration.

    metadata: (options, plan.facts, lengths, row sums) -> more of `Store.meta`.
    report: (task, options, meta) -> log lines about prepared data.
    check: (a task with one source, the most records to read) reads the first records and raises the UserError that
        their preparation would raise. Default: by `reads`.
    check_classes: (preview) -> the classes that evaluations of a stage are scored by, from the first records of all
        sources; None if these do not show them. Raises UserError for labels that do not fit.
    texts: (task, source, base) -> the texts of its examples, for a tokenizer, if a record has no `text_field`.
    """

    version: int  # in the key of prepared data; raise it when rows or `Store.meta` change (test_versions.py)
    reads: Literal["documents", "texts", "records", "questions"]  # from a source; documents are lists of sentences
    layout: Literal["encoder", "encoder_decoder", "decoder"]  # of the model; `decoder_only` converts the second
    plan: Callable[[PrepareContext], JobPlan]  # of the jobs that make unpacked rows
    dtype: Callable[[Any, ClassSpec], np.dtype]  # (options, classes) -> an unpacked row without static masks
    uses_seed: bool = False  # whether rows depend on the seed of the run
    uses_classes: bool = False  # whether rows depend on the classes of a classifier
    stages: Callable[[Any], Mapping[str, int]] = lambda options: {}  # VERSIONs besides packing and sampling
    masker: Callable[[Any, Any, int], "StaticMasker | None"] = lambda options, tokenizer, seed: None  # of packed rows
    transform: Callable[[Any, Any], Transform | None] = lambda options, tokenizer: None  # of rows at load time
    metadata: Callable[[Any, dict[str, Any], np.ndarray, Mapping[str, int]], dict[str, Any]] = lambda *_: {}
    report: Callable[[str, Any, dict[str, Any]], Iterable[str]] = lambda *_: ()
    check: Callable[[Preview, int], None] | None = None
    check_classes: Callable[[Preview], ClassSpec | None] = lambda preview: None
    texts: Callable[[Task, Any, Path], Iterable[str]] | None = None
    corruption: Any = None  # of a denoising kind: its `denoising.rules.Corruption`


def record_of(options: Any) -> PreprocessKind:
    """The record of a preprocess section's kind. Raises TypeError for a kind without one."""
    return schema.record_of(options, PreprocessKind)
