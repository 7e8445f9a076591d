"""Floor 3: objectives. Each turns (model, batch, key) into sums and weights, never means.

Sums over real targets and their weights add up exactly over micro-batches, packed rows and processes; the step divides
once by the weight of the whole global batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from bertjax.config.training_schema import Classification, MlmNsp, SpanQaObjective, TextToTextObjective
from bertjax.losses import per_sequence, target_losses
from bertjax.models.bert import Bert
from bertjax.models.family import Module
from bertjax.models.t5 import T5, shift_right

Batch = Mapping[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Term:
    """One part of an objective over a batch; float32 scalars. `correct` counts weighted right predictions.

    `by_task`, where the batch comes from several: float32 [T, 2], loss and weight of each. `trained`, where it is not
    `loss`: the sum that the objective adds up instead, with what regularises it and with other weights.
    """

    loss: jax.Array
    correct: jax.Array
    weight: jax.Array
    by_task: jax.Array | None = None
    trained: jax.Array | None = None


@dataclass(frozen=True)
class Objective:
    """Attributes:
    heads: the model heads it reads.
    scales: its terms and their share in the total loss.
    divisors: batch -> {term: what its loss sum is divided by}, of the whole batch and before the model runs.
    terms: (model, batch, key or None) -> {term: Term}.
    """

    heads: tuple[str, ...]
    num_labels: int
    scales: Mapping[str, float]
    divisors: Callable[[Batch], dict[str, jax.Array]]
    terms: Callable[[Module, Batch, jax.Array | None], dict[str, Term]]

    def total(self, terms: Mapping[str, Term], divisors: Mapping[str, jax.Array]) -> jax.Array:
        sums = {name: t.loss if t.trained is None else t.trained for name, t in terms.items()}
        return sum((s * sums[name] / divisors[name] for name, s in self.scales.items()), jnp.float32(0))


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log softmax(logits [..., V])[target] in float32 -> [...]."""
    logits = logits.astype(jnp.float32)
    return jax.nn.logsumexp(logits, axis=-1) - picked(logits, targets)


def picked(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """logits [..., V] at targets [...], by comparison, which stays local when V is split over devices."""
    hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]
    return jnp.where(hit, logits, 0).sum(-1)


def top(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Whether no logit [..., V] exceeds the target's -> bool [...].

    Over a vocabulary a maximum is much cheaper than an argmax, a tenth of a small BERT's whole step on the CPU.
    """
    logits = jax.lax.stop_gradient(logits.astype(jnp.float32))
    return picked(logits, targets) >= logits.max(-1)


def _term(loss: jax.Array, right: jax.Array, weights: jax.Array, batch: Batch, tasks: int) -> Term:
    """Sums over losses [B, N] with their weights."""
    by_task = None
    if tasks > 1 and "task_ids" in batch:  # an evaluation has one task
        rows = jnp.stack([(loss * weights).sum(-1), weights.sum(-1)], axis=-1)
        by_task = jnp.where(_members(batch, tasks)[..., None], rows[:, None], 0).sum(0)
    return Term((loss * weights).sum(), (right * weights).sum(), weights.sum(), by_task)


def _members(batch: Batch, tasks: int) -> jax.Array:
    """Which task each row comes from: bool [B, T]."""
    return batch["task_ids"][:, None] == jnp.arange(tasks)


def rows_by_task(batch: Batch, tasks: int) -> jax.Array:
    """How many rows each task has in the batch: int32 [T]."""
    return _members(batch, tasks).sum(0, dtype=jnp.int32)


def _packed(batch: Batch) -> bool:
    return batch["cls_positions"].shape[1] > 1


def _encode(model: Bert, batch: Batch, key: jax.Array | None) -> jax.Array:
    fields = (batch[name] for name in ("input_ids", "token_type_ids", "segment_ids", "positions"))
    return model.encode(*fields, packed=_packed(batch), key=key)


def mlm_nsp(config: MlmNsp, tasks: int) -> Objective:
    """run_pretraining.py: MLM sum(w * ce) / (sum(w) + 1e-5) over masked positions, plus the mean NSP loss.

    The reference divides per replica; here the divisor is that of the global batch, so the mesh does not change it.
    """
    scales = {"mlm": config.mlm_weight, "nsp": config.nsp_weight}
    scales = {name: scale for name, scale in scales.items() if scale > 0}

    def divisors(batch: Batch) -> dict[str, jax.Array]:
        sums = {"mlm": batch["masked_weights"].sum() + 1e-5, "nsp": jnp.maximum(batch["nsp_weights"].sum(), 1e-5)}
        return {name: sums[name] for name in scales}

    def terms(model: Bert, batch: Batch, key: jax.Array | None) -> dict[str, Term]:
        hidden, out = _encode(model, batch, key), {}
        if "mlm" in scales:
            logits = model.mlm_logits(hidden, batch["masked_positions"])
            loss = cross_entropy(logits, batch["masked_ids"])
            out["mlm"] = _term(loss, top(logits, batch["masked_ids"]), batch["masked_weights"], batch, tasks)
        if "nsp" in scales:
            logits = model.nsp_logits(hidden, batch["cls_positions"])
            loss = cross_entropy(logits, batch["nsp_labels"])
            right = logits.argmax(-1) == batch["nsp_labels"]
            out["nsp"] = _term(loss, right, batch["nsp_weights"], batch, tasks)
        return out

    return Objective(tuple(scales), 2, scales, divisors, terms)


def span_qa(_: SpanQaObjective, tasks: int) -> Objective:
    """run_squad.py: mean over examples of (start loss + end loss) / 2.

    The softmax runs over the example's own tokens; the reference's also runs over padding, which packing rules out.
    """

    def divisors(batch: Batch) -> dict[str, jax.Array]:
        return {"span": jnp.maximum(batch["span_weights"].sum(), 1e-5)}

    def terms(model: Bert, batch: Batch, key: jax.Array | None) -> dict[str, Term]:
        groups = jnp.arange(1, batch["cls_positions"].shape[1] + 1)
        own_BGS = batch["segment_ids"][:, None, :] == groups[None, :, None]
        losses, right = jnp.float32(0), jnp.bool_(True)
        keys = jax.random.split(key) if key is not None and model.config.qa_dropout else (key, None)
        logits = model.qa_logits(_encode(model, batch, keys[0]), keys[1])
        for logits_BS, targets in zip(logits, (batch["start_positions"], batch["end_positions"]), strict=True):
            logits_BGS = jnp.where(own_BGS, logits_BS[:, None, :], -1e30)
            losses = losses + cross_entropy(logits_BGS, targets) / 2
            right = right & (logits_BGS.argmax(-1) == targets)
        weights = batch["span_weights"]
        return {"span": _term(jnp.where(weights > 0, losses, 0), right, weights, batch, tasks)}

    return Objective(("qa",), 2, {"span": 1.0}, divisors, terms)


def classification(config: Classification, tasks: int) -> Objective:
    """run_classifier.py: mean cross-entropy of the label; with one label, mean squared error (as for STS-B)."""

    def divisors(batch: Batch) -> dict[str, jax.Array]:
        return {"label": jnp.maximum(batch["label_weights"].sum(), 1e-5)}

    def terms(model: Bert, batch: Batch, key: jax.Array | None) -> dict[str, Term]:
        keys = (None, None) if key is None else jax.random.split(key)
        logits = model.class_logits(_encode(model, batch, keys[0]), batch["cls_positions"], keys[1])
        labels, weights = batch["labels"], batch["label_weights"]
        if config.num_labels == 1:
            error = (logits[..., 0] - labels) ** 2
            return {"label": _term(error, error < 0.25, weights, batch, tasks)}
        right = logits.argmax(-1) == labels
        return {"label": _term(cross_entropy(logits, labels), right, weights, batch, tasks)}

    return Objective(("classifier",), config.num_labels, {"label": 1.0}, divisors, terms)


def text_to_text(config: TextToTextObjective, tasks: int) -> Objective:
    """Cross-entropy of every weighted target, sentinels and end included, as in t5x/models.py.

    The term is the plain cross-entropy of a target; z-loss, label smoothing and the weights of `average_per_sequence`
    are in the total alone. A batch without `input_ids` is for a decoder alone. The divisor by
    `loss_normalizing_factor` (get_loss_normalizing_factor_and_weights of t5x/losses.py) is that of the global batch.
    """
    factor = config.loss_normalizing_factor

    def weights(batch: Batch) -> jax.Array:
        given = batch["target_weights"]
        return per_sequence(given, batch["target_segment_ids"]) if factor == "average_per_sequence" else given

    def divisors(batch: Batch) -> dict[str, jax.Array]:
        if isinstance(factor, str):
            known = {"sum": 1.0, "num_total_target_tokens": float(batch["target_weights"].size)}
            found = known[factor] if factor in known else jnp.maximum(weights(batch).sum(), 1e-5)
            return {"target": jnp.float32(found)}
        return {"target": jnp.float32(factor)}

    def terms(model: T5, batch: Batch, key: jax.Array | None) -> dict[str, Term]:
        keys = (None, None) if key is None else jax.random.split(key)
        targets, segments = batch["target_ids"], batch["target_segment_ids"]
        inputs = shift_right(targets, batch["target_positions"], model.config.decoder_start_token_id)
        if "input_ids" in batch:
            hidden = model.encode(batch["input_ids"], batch["segment_ids"], key=keys[0])
            decoded = model.decode(inputs, segments, hidden, batch["segment_ids"], key=keys[1])
        else:
            decoded = model.decode(inputs, segments, None, None, prefix_mask=batch["prefix_mask"], key=keys[1])
        trained, plain, right = target_losses(model.logits(decoded), targets, config.z_loss, config.label_smoothing)
        term = _term(plain, right, batch["target_weights"], batch, tasks)
        return {"target": replace(term, trained=(trained * weights(batch)).sum())}

    return Objective(("lm",), 2, {"target": 1.0}, divisors, terms)


def build(config: MlmNsp | SpanQaObjective | Classification | TextToTextObjective, tasks: int = 1) -> Objective:
    """The objective a stage names; `tasks` is how many its batches are mixed from."""
    makers: dict[str, Callable[..., Objective]] = {
        "mlm_nsp": mlm_nsp,
        "span_qa": span_qa,
        "classification": classification,
        "text_to_text": text_to_text,
    }
    return makers[config.kind](config, tasks)
