"""The record of a kind of preprocessing: everything the program asks of a kind, found by its configuration section."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bertjax.config.schema import base as schema
from bertjax.data.jobs.job_plan import JobPlan, PrepareContext

if TYPE_CHECKING:
    from bertjax.data.preprocess.masking import StaticMasker

# (stored rows [n], seed=, epoch= [n], indices= [n]) -> {name: [n, ...]}; a pure function of its arguments.
Transform = Callable[..., dict[str, np.ndarray]]


@dataclass(frozen=True)
class PreprocessKind:
    """Functions and facts of one kind. `options` is always the kind's own section of the configuration.

    metadata: (options, plan.facts, lengths, row sums) -> more of `Store.meta`.
    report: (task, options, meta) -> log lines about prepared data.
    """

    version: int  # in the key of prepared data; raise it when rows or `Store.meta` change (test_versions.py)
    reads: Literal["documents", "texts", "records", "questions"]  # from a source; documents are lists of sentences
    layout: Literal["encoder", "encoder_decoder", "decoder"]  # of the model; `decoder_only` converts the second
    plan: Callable[[PrepareContext], JobPlan]  # of the jobs that make unpacked rows
    dtype: Callable[[Any, bool], np.dtype]  # (options, regression) -> an unpacked row without static masks
    uses_seed: bool = False  # whether rows depend on the seed of the run
    uses_classes: bool = False  # whether rows depend on the classes of a classifier
    stages: Callable[[Any], Mapping[str, int]] = lambda options: {}  # VERSIONs besides packing and sampling
    masker: Callable[[Any, Any, int], "StaticMasker | None"] = lambda options, tokenizer, seed: None  # of packed rows
    transform: Callable[[Any, Any], Transform | None] = lambda options, tokenizer: None  # of rows at load time
    metadata: Callable[[Any, dict[str, Any], np.ndarray, Mapping[str, int]], dict[str, Any]] = lambda *_: {}
    report: Callable[[str, Any, dict[str, Any]], Iterable[str]] = lambda *_: ()
    corruption: Any = None  # of a denoising kind: its `denoising.rules.Corruption`


def record_of(options: Any) -> PreprocessKind:
    """The record of a preprocess section's kind. Raises TypeError for a kind without one."""
    return schema.record_of(options, PreprocessKind)
