"""Evaluation of predicted labels: kind classification."""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.config.schema.evaluation import ClassificationEvaluation
from bertjax.config.schema.run import Stage
from bertjax.data.preprocess.labels import report_lines as label_lines
from bertjax.data.sources.class_names import ClassSpec
from bertjax.evaluation.evaluators.heldout import open_heldout, save_json
from bertjax.evaluation.evaluators.label_samples import LabelSamples, fetch_fields
from bertjax.evaluation.evaluators.registry import AbstractBatch, CountedRun, EvaluationKind, Run
from bertjax.evaluation.inference.batches import device_batches, local_batch_rows
from bertjax.evaluation.metrics.custom import custom_scores
from bertjax.evaluation.metrics.labels import label_details, label_scores, score_names
from bertjax.evaluation.metrics.multi_label import SCORES, multi_label_details, multi_label_scores
from bertjax.evaluation.records import EvaluationRecord
from bertjax.parallel.multihost import primary
from bertjax.progress import reporter
from bertjax.training.program import MeshJit, TrainProgram
from bertjax.training.run_context import RunContext
from bertjax.training.state import Params


def classification_evaluator(
    ctx: RunContext,
    program: TrainProgram,
    config: ClassificationEvaluation,
    record: EvaluationRecord,
    labels: list[str] | None,
) -> Run:
    """Scores of `label_scores`, or `multi_label_scores`; rows without a label are skipped.

    The file has also the counts of `label_details` and samples of errors. labels: names of the classes by id, to which
    the labels of the data are matched.
    """
    names = tuple(labels) if labels else None
    several = program.is_multi_label
    classes = ClassSpec(program.num_classes, names, required=True, keep_unlabeled=True, multi_label=several)
    batches = open_heldout(ctx, program, config, classes)
    meta = batches.stores[config.name].meta
    for line in label_lines(meta, training=False) if primary.is_primary() else ():
        reporter.say(f"evaluation '{config.name}': {line}")
    left_out = {"records_without_label": meta["hidden"]} if meta.get("hidden") else {}
    predict = _make_logits_fn(program)
    replicate = MeshJit(
        jax.jit(lambda x: x, out_shardings=NamedSharding(program.mesh, P())), program.mesh, program.rules
    )
    shown_names = labels or meta.get("labels")

    def run(params: Params, step: int) -> dict[str, float]:
        logits, truths = [], []
        samples = LabelSamples(ctx.tokenizer, shown_names, config.threshold if several else None)
        for batch in device_batches(batches.epoch_batches(local_batch_rows(program, batches)), program, batches):
            found, truth, weights = jax.device_get(predict(params, batch))
            logits.append(found[weights > 0])
            truths.append(truth[weights > 0])
            samples.add(found, truth, weights, fetch_fields(replicate, batch))
        targets, outputs = np.concatenate(truths), np.concatenate(logits).reshape(-1, program.num_classes)
        scores, details = _score(config, outputs, targets, shown_names, several)
        content = {"step": step, "scores": scores, **left_out, **details, "samples": samples.samples()}
        save_json(record, config.name, content)
        return scores

    return CountedRun(run, batches.rows_per_epoch)


def _score(
    config: ClassificationEvaluation, logits: np.ndarray, labels: np.ndarray, names: list[str] | None, several: bool
) -> tuple[dict[str, float], dict[str, Any]]:
    """(scores, their details) of logits [N, C] and labels of N texts."""
    if several:
        labels = labels.reshape(logits.shape)
        scores = multi_label_scores(logits, labels, config.threshold)
        details = multi_label_details(logits, labels, names, config.threshold)
    else:
        labels = labels.reshape(-1)
        scores, details = label_scores(logits, labels), label_details(logits, labels, names)
    for metric in config.metrics:
        scores |= custom_scores(metric, labels, logits)
    return scores, details


def _make_logits_fn(program: TrainProgram) -> MeshJit:
    """(params, batch) -> (class logits, labels, label weights), replicated."""

    def forward(params: Params, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        model = program.build_model(params)
        fields = (batch[name] for name in ("input_ids", "token_type_ids", "segment_ids", "positions"))
        hidden = model.encode(*fields, packed=batch["cls_positions"].shape[1] > 1)
        return model.class_logits(hidden, batch["cls_positions"]), batch["labels"], batch["label_weights"]

    replicated = NamedSharding(program.mesh, P())
    return MeshJit(jax.jit(forward, out_shardings=replicated), program.mesh, program.rules)


def _lower(
    ctx: RunContext, program: TrainProgram, config: ClassificationEvaluation, batch: AbstractBatch
) -> tuple[Hashable, Callable[[], Any]]:
    predict: Any = _make_logits_fn(program)
    key = ("classes", tuple(sorted((name, x.shape) for name, x in batch.items())))
    return key, lambda: predict.lower(program.abstract_params(), batch)


def _scores(config: ClassificationEvaluation, stage: Stage) -> tuple[str, ...] | None:
    count = getattr(stage.objective, "num_labels", None)  # None: a head of an earlier stage
    if count is None or config.metrics:  # those of plugins are not known before
        return None
    return SCORES if stage.objective.multi_label else score_names(count)


CLASSIFICATION = EvaluationKind(build=classification_evaluator, lower=_lower, scores=_scores)
