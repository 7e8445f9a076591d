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

    Attributes:
        version: an integer in the key of prepared data; raise it when rows or `Store.meta` change (test_versions.py).
        reads: what a source must give: documents (lists of sentences), texts, records or questions.
        layout: which model reads the rows: an encoder, an encoder and a decoder, or only a decoder. Rows of the second
            layout are converted for models without an encoder.
        plan: reads the sources and divides the work into jobs that make unpacked rows.
        dtype: (options, regression) -> the type of an unpacked row without static masks.
        uses_seed, uses_classes: whether the rows depend on the seed of the run, or on the classes of a classifier.
        stages: VERSIONs of the shared stages that these options use, besides packing and sampling.
        masker: (options, tokenizer, seed) -> static masks for packed rows; None where there are none.
        transform: (options, tokenizer) -> what is done to rows when they are loaded; None: nothing.
        metadata: (options, plan.facts, lengths, row sums) -> more of `Store.meta`.
        report: (task, options, meta) -> log lines about prepared data.
        corruption: of a denoising kind: its `denoising.rules.Corruption`.
    """

    version: int
    reads: Literal["documents", "texts", "records", "questions"]
    layout: Literal["encoder", "encoder_decoder", "decoder"]
    plan: Callable[[PrepareContext], JobPlan]
    dtype: Callable[[Any, bool], np.dtype]
    uses_seed: bool = False
    uses_classes: bool = False
    stages: Callable[[Any], Mapping[str, int]] = lambda options: {}
    masker: Callable[[Any, Any, int], "StaticMasker | None"] = lambda options, tokenizer, seed: None
    transform: Callable[[Any, Any], Transform | None] = lambda options, tokenizer: None
    metadata: Callable[[Any, dict[str, Any], np.ndarray, Mapping[str, int]], dict[str, Any]] = lambda *_: {}
    report: Callable[[str, Any, dict[str, Any]], Iterable[str]] = lambda *_: ()
    corruption: Any = None


def record_of(options: Any) -> PreprocessKind:
    """The record of a preprocess section's kind. Raises TypeError for a kind without one."""
    return schema.record_of(options, PreprocessKind)
