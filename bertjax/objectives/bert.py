"""Objectives of encoders: masked language modelling with NSP, answer spans and classification."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from bertjax.config.schema.training import ClassificationObjective, MlmNspObjective, SpanQaObjective
from bertjax.models.bert.model import Bert
from bertjax.objectives.base import (
    ALL_POSITIONS,
    Batch,
    LossTerm,
    Objective,
    binary_cross_entropy,
    cross_entropy,
    is_correct,
    weighted_sums,
)
from bertjax.objectives.encoder import encode, positions
from bertjax.objectives.registry import ObjectiveKind


def mlm_nsp(config: MlmNspObjective, tasks: int) -> Objective:
    """run_pretraining.py: MLM sum(w * ce) / (sum(w) + 1e-5) over masked positions, plus the mean NSP loss.

    The reference divides per replica; here the divisor is that of the global batch, independent of the mesh.
    """
    weights = {"mlm": config.mlm_weight, "nsp": config.nsp_weight}
    weights = {name: scale for name, scale in weights.items() if scale > 0}

    def normalizers(batch: Batch) -> dict[str, jax.Array]:
        sums = {"mlm": batch["masked_weights"].sum() + 1e-5, "nsp": jnp.maximum(batch["nsp_weights"].sum(), 1e-5)}
        return {name: sums[name] for name in weights}

    def losses(model: Bert, batch: Batch, key: jax.Array | None) -> dict[str, LossTerm]:
        hidden, out = encode(model, batch, key), {}
        if "mlm" in weights:
            logits = model.mlm_logits(hidden, batch["masked_positions"])
            loss, right = cross_entropy(logits, batch["masked_ids"]), is_correct(logits, batch["masked_ids"])
            out["mlm"] = weighted_sums(loss, right, batch["masked_weights"], batch, tasks)
        if "nsp" in weights:
            logits = model.nsp_logits(hidden, batch["cls_positions"])
            loss = cross_entropy(logits, batch["nsp_labels"])
            right = logits.argmax(-1) == batch["nsp_labels"]
            out["nsp"] = weighted_sums(loss, right, batch["nsp_weights"], batch, tasks)
        return out

    return Objective(tuple(weights), 2, weights, normalizers, losses, kept_positions=ALL_POSITIONS)


def span_qa(_: SpanQaObjective, tasks: int) -> Objective:
    """run_squad.py: mean over examples of (start loss + end loss) / 2.

    The softmax is over the tokens of the example; that of the reference includes padding, which packing excludes.
    """

    def normalizers(batch: Batch) -> dict[str, jax.Array]:
        return {"span": jnp.maximum(batch["span_weights"].sum(), 1e-5)}

    def losses(model: Bert, batch: Batch, key: jax.Array | None) -> dict[str, LossTerm]:
        groups = jnp.arange(1, batch["cls_positions"].shape[1] + 1)
        own_BGS = batch["segment_ids"][:, None, :] == groups[None, :, None]
        loss, right = jnp.float32(0), jnp.bool_(True)
        keys = jax.random.split(key) if key is not None and model.config.qa_dropout else (key, None)
        logits = model.qa_logits(encode(model, batch, keys[0]), keys[1])
        for logits_BS, targets in zip(logits, (batch["start_positions"], batch["end_positions"]), strict=True):
            logits_BGS = jnp.where(own_BGS, logits_BS[:, None, :], -1e30)
            loss = loss + cross_entropy(logits_BGS, targets) / 2
            right = right & (logits_BGS.argmax(-1) == targets)
        weights = batch["span_weights"]
        return {"span": weighted_sums(jnp.where(weights > 0, loss, 0), right, weights, batch, tasks)}

    return Objective(("qa",), 2, {"span": 1.0}, normalizers, losses, kept_positions=ALL_POSITIONS)


def classification(config: ClassificationObjective, tasks: int) -> Objective:
    """run_classifier.py: mean cross-entropy of the label; with one label, mean squared error (as for STS-B).

    With several labels for one text, the sigmoid cross-entropy, averaged over labels and examples as in transformers
    (BCEWithLogitsLoss). `class_weights` are those of PyTorch's losses: the weighted mean sum(w[y] ce) / sum(w[y]), and
    `pos_weight` with several labels. They are a list by id once the data are open (`weigh_classes`); before, as in the
    plan of a stage, all are 1. The loss `label_loss` of the log is never weighted.
    """
    table = None
    if config.class_weights is not None:
        known = isinstance(config.class_weights, list)
        table = jnp.asarray(config.class_weights if known else [1.0] * config.num_labels, jnp.float32)
    by_class = None if config.multi_label else table

    def normalizers(batch: Batch) -> dict[str, jax.Array]:
        weights = batch["label_weights"]
        weights = weights if by_class is None else weights * by_class[batch["labels"]]
        return {"label": jnp.maximum(weights.sum(), 1e-5)}

    def losses(model: Bert, batch: Batch, key: jax.Array | None) -> dict[str, LossTerm]:
        keys = (None, None) if key is None else jax.random.split(key)
        logits = model.class_logits(encode(model, batch, keys[0]), positions(batch, "cls_positions"), keys[1])
        labels, weights = batch["labels"], batch["label_weights"]
        trained: jax.Array | None = None  # where it is another loss than that of the log
        if config.num_labels == 1:
            loss = (logits[..., 0] - labels) ** 2
            right = loss < 0.25
        elif config.multi_label:
            loss = binary_cross_entropy(logits, labels).mean(-1)
            trained = None if table is None else binary_cross_entropy(logits, labels, table).mean(-1)
            right = ((logits >= 0) == (labels > 0)).all(-1)
        else:
            loss, right = cross_entropy(logits, labels), logits.argmax(-1) == labels
            trained = None if by_class is None else loss * by_class[labels]
        term = weighted_sums(loss, right, weights, batch, tasks)
        return {"label": term if trained is None else replace(term, train_loss=(trained * weights).sum())}

    return Objective(
        ("classifier",), config.num_labels, {"label": 1.0}, normalizers, losses, multi_label=config.multi_label,
        kept_positions="cls_positions",
    )  # fmt: skip


MLM_NSP = ObjectiveKind(mlm_nsp)
SPAN_QA = ObjectiveKind(span_qa)
CLASSIFICATION = ObjectiveKind(classification)
