"""Objectives of encoders: masked language modelling with NSP, answer spans and classification."""

from collections.abc import Callable, Collection
from dataclasses import replace

import jax
import jax.numpy as jnp

from bertjax.config.schema.distillation import Distillation
from bertjax.config.schema.training import ClassificationObjective, MlmNspObjective, SpanQaObjective
from bertjax.models.bert.heads import gather_positions
from bertjax.models.bert.model import Bert
from bertjax.objectives.base import (
    ALL_POSITIONS,
    Batch,
    LossTerm,
    Objective,
    Outputs,
    SoftTargets,
    binary_cross_entropy,
    cross_entropy,
    is_correct,
    weighted_sums,
)
from bertjax.objectives.distillation import compare_logits
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

    def outputs(
        model: Bert, batch: Batch, key: jax.Array | None, every: bool = False, heads: Collection[str] = weights
    ) -> Outputs:
        """With `every`, the MLM logits of all positions, else of those to predict."""
        hidden = encode(model, batch, key)
        found = {"hidden": hidden}
        if "mlm" in heads:
            places = jnp.broadcast_to(jnp.arange(hidden.shape[1]), hidden.shape[:2]) if every else None
            found["mlm"] = model.mlm_logits(hidden, batch["masked_positions"] if places is None else places)
        if "nsp" in heads:
            found["nsp"] = model.nsp_logits(hidden, batch["cls_positions"])
        return found

    def terms(found: Outputs, batch: Batch, every: bool = False) -> dict[str, LossTerm]:
        out = {}
        if "mlm" in weights:
            logits = gather_positions(found["mlm"], batch["masked_positions"]) if every else found["mlm"]
            loss, right = cross_entropy(logits, batch["masked_ids"]), is_correct(logits, batch["masked_ids"])
            out["mlm"] = weighted_sums(loss, right, batch["masked_weights"], batch, tasks)
        if "nsp" in weights:
            logits = found["nsp"]
            loss = cross_entropy(logits, batch["nsp_labels"])
            right = logits.argmax(-1) == batch["nsp_labels"]
            out["nsp"] = weighted_sums(loss, right, batch["nsp_weights"], batch, tasks)
        return out

    def soft_targets(distillation: Distillation) -> SoftTargets:
        every = distillation.tokens == "all"
        chosen = lambda batch: batch["segment_ids"] > 0 if every else batch["masked_weights"] > 0  # noqa: E731
        return SoftTargets(
            heads=("mlm",),
            outputs=lambda model, batch, key: outputs(model, batch, key, every),
            teacher_outputs=lambda model, batch: outputs(model, batch, None, every, ("mlm",)),
            losses=lambda found, batch: terms(found, batch, every),
            compare=lambda mine, theirs, _: compare_logits(mine["mlm"], theirs["mlm"], distillation.temperature),
            weights=lambda batch: chosen(batch).astype(jnp.float32),
            row_widths=lambda widths: widths | ({"masked_positions": widths["input_ids"]} if every else {}),
        )

    losses = lambda model, batch, key: terms(outputs(model, batch, key), batch)  # noqa: E731
    return Objective(
        tuple(weights), 2, weights, normalizers, losses, soft_targets=soft_targets,
        kept_positions=ALL_POSITIONS,
    )  # fmt: skip


def span_qa(_: SpanQaObjective, tasks: int) -> Objective:
    """run_squad.py: mean over examples of (start loss + end loss) / 2.

    The softmax is over the tokens of the example; that of the reference includes padding, which packing excludes.
    """

    def normalizers(batch: Batch) -> dict[str, jax.Array]:
        return {"span": jnp.maximum(batch["span_weights"].sum(), 1e-5)}

    def outputs(model: Bert, batch: Batch, key: jax.Array | None) -> Outputs:
        keys = jax.random.split(key) if key is not None and model.config.qa_dropout else (key, None)
        hidden = encode(model, batch, keys[0])
        start, end = model.qa_logits(hidden, keys[1])
        return {"hidden": hidden, "start": start, "end": end}

    def by_example(logits_BS: jax.Array, batch: Batch) -> jax.Array:
        """-> [B, G, S], very low outside the tokens of each example."""
        groups = jnp.arange(1, batch["cls_positions"].shape[1] + 1)
        own_BGS = batch["segment_ids"][:, None, :] == groups[None, :, None]
        return jnp.where(own_BGS, logits_BS[:, None, :], -1e30)

    def terms(found: Outputs, batch: Batch) -> dict[str, LossTerm]:
        loss, right = jnp.float32(0), jnp.bool_(True)
        for name in ("start", "end"):
            logits_BGS, targets = by_example(found[name], batch), batch[f"{name}_positions"]
            loss = loss + cross_entropy(logits_BGS, targets) / 2
            right = right & (logits_BGS.argmax(-1) == targets)
        weights = batch["span_weights"]
        return {"span": weighted_sums(jnp.where(weights > 0, loss, 0), right, weights, batch, tasks)}

    def soft_targets(distillation: Distillation) -> SoftTargets:
        def compare(mine: Outputs, theirs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
            """As run_squad_w_distillation.py, over the tokens of each example."""
            (start, same_start), (end, same_end) = (
                compare_logits(by_example(mine[name], batch), by_example(theirs[name], batch), distillation.temperature)
                for name in ("start", "end")
            )
            return (start + end) / 2, same_start & same_end

        return SoftTargets(("qa",), outputs, terms, compare, lambda batch: batch["span_weights"])

    losses = lambda model, batch, key: terms(outputs(model, batch, key), batch)  # noqa: E731
    return Objective(
        ("qa",), 2, {"span": 1.0}, normalizers, losses, soft_targets=soft_targets, kept_positions=ALL_POSITIONS
    )


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

    def outputs(model: Bert, batch: Batch, key: jax.Array | None) -> Outputs:
        keys = (None, None) if key is None else jax.random.split(key)
        hidden = encode(model, batch, keys[0])
        return {"hidden": hidden, "classifier": model.class_logits(hidden, positions(batch, "cls_positions"), keys[1])}

    def terms(found: Outputs, batch: Batch) -> dict[str, LossTerm]:
        logits, labels, weights = found["classifier"], batch["labels"], batch["label_weights"]
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

    def soft_targets(distillation: Distillation) -> SoftTargets:
        compare = _class_comparison(config, distillation.temperature)
        return SoftTargets(("classifier",), outputs, terms, compare, lambda batch: batch["label_weights"])

    losses = lambda model, batch, key: terms(outputs(model, batch, key), batch)  # noqa: E731
    return Objective(
        ("classifier",), config.num_labels, {"label": 1.0}, normalizers, losses, multi_label=config.multi_label,
        soft_targets=soft_targets, kept_positions="cls_positions",
    )  # fmt: skip


def _class_comparison(
    config: ClassificationObjective, temperature: float
) -> Callable[[Outputs, Outputs, Batch], tuple[jax.Array, jax.Array]]:
    """KL of the classes; squared error of a regression; sigmoid cross-entropy to the teacher's with several labels."""

    def compare(mine: Outputs, theirs: Outputs, _: Batch) -> tuple[jax.Array, jax.Array]:
        logits, teacher = mine["classifier"], theirs["classifier"]
        if config.num_labels == 1:
            loss = (logits[..., 0] - teacher[..., 0]) ** 2
            return loss, loss < 0.25
        if config.multi_label:
            loss = binary_cross_entropy(logits / temperature, jax.nn.sigmoid(teacher / temperature)).mean(-1)
            return loss * temperature**2, ((logits >= 0) == (teacher >= 0)).all(-1)
        return compare_logits(logits, teacher, temperature)

    return compare


MLM_NSP = ObjectiveKind(mlm_nsp)
SPAN_QA = ObjectiveKind(span_qa)
CLASSIFICATION = ObjectiveKind(classification)
