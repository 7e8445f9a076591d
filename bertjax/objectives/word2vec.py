"""CBOW and skip-gram with negative sampling (arXiv 1301.3781, 1310.4546; word2vec.c), on dense rows.

A token of a row is a center; those around it are read by shifts of the row. Special tokens are in no window.
B rows of a batch (or of its shard), N of the global one, S positions, W window, K negatives, D width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bertjax.config.schema.ladder_objectives import CbowObjective, SkipGramObjective
from bertjax.models.layers.dropout import hash_bits
from bertjax.models.word2vec import Word2Vec
from bertjax.objectives.base import Batch, LossTerm, Objective, binary_cross_entropy, weighted_sums
from bertjax.objectives.registry import ObjectiveKind
from bertjax.parallel.sharding import all_gather_rows

EVALUATION_KEY = 0  # an evaluation draws as training does, always the same


class Windows(NamedTuple):
    """The tokens of rows that are left after subsampling, moved together, and the windows around them."""

    ids: jax.Array  # int [B, S]
    offsets: tuple[int, ...]  # -W .. -1, 1 .. W
    inside: jax.Array  # bool [B, S, 2 W] whether the token at this offset is in the center's window


def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random numbers from 0 to 1 (exclusive), float32 [*shape], whose first axis is that of rows; see `hash_bits`."""
    return (hash_bits(key, shape) >> 8).astype(jnp.float32) * 2.0**-24


def keep_probability(frequencies: jax.Array, sample: float) -> jax.Array:
    """Probability with which a token stays: (sqrt(f / sample) + 1) * sample / f, at most 1; 0 for f = 0 (special)."""
    known = frequencies > 0
    if not sample:
        return known.astype(jnp.float32)
    ratio = jnp.where(known, frequencies, 1.0) / sample
    return jnp.where(known, jnp.minimum((jnp.sqrt(ratio) + 1) / ratio, 1.0), 0.0)


def make_windows(batch: Batch, window: int, sample: float, key: jax.Array) -> Windows:
    """Drop tokens at random before the windows are laid, which so reach farther, as word2vec.c does.

    Each center draws a width from 1 to `window`. Windows end at the ends of their example.
    """
    keys = jax.random.split(key)
    keep = uniform(keys[0], batch["input_ids"].shape) < keep_probability(batch["frequencies"], sample)
    order = jnp.argsort(~keep, axis=1, stable=True)
    ids = jnp.take_along_axis(batch["input_ids"], order, axis=1)
    segments = jnp.take_along_axis(jnp.where(keep, batch["segment_ids"], 0), order, axis=1)
    width = 1 + (hash_bits(keys[1], ids.shape) % window).astype(jnp.int32)
    offsets = tuple(offset for offset in range(-window, window + 1) if offset)
    place = jnp.arange(ids.shape[1])

    def inside(offset: int) -> jax.Array:
        there = (place + offset >= 0) & (place + offset < ids.shape[1]) & (segments > 0)
        return there & (jnp.roll(segments, -offset, axis=1) == segments) & (width >= abs(offset))

    return Windows(ids, offsets, jnp.stack([inside(offset) for offset in offsets], axis=-1))


def draw_negatives(batch: Batch, count: int, key: jax.Array) -> jax.Array:
    """Random tokens int [B, S, K] for each center, by their frequency to the power 0.75.

    Drawn from the tokens of the global (micro-)batch, which are as frequent as in the text, each with the weight
    frequency^-0.25: over batches the distribution is that of word2vec.c, but for its normalizer.
    """
    ids, frequencies = (all_gather_rows(batch[name]).reshape(-1) for name in ("input_ids", "frequencies"))
    weights = jnp.where(frequencies > 0, jnp.maximum(frequencies, 1e-30) ** -0.25, 0.0)
    bounds = jnp.cumsum(weights)
    rows, length = batch["input_ids"].shape
    at = jnp.searchsorted(bounds, uniform(key, (rows, length * count)) * bounds[-1], side="right")
    return ids[jnp.minimum(at, len(ids) - 1)].reshape(rows, length, count)


def sampled_losses(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """logits [..., 1 + K], int targets [..., 1 + K] of a token and its negatives -> (loss, whether it is above) [...].

    -log sigmoid(x) of the token and -log sigmoid(-x) of each negative; one that is the token itself does not count.
    """
    first = jnp.arange(logits.shape[-1]) == 0
    counts = first | (targets != targets[..., :1])
    loss = jnp.where(counts, binary_cross_entropy(logits, first), 0).sum(-1)
    others = jnp.where(counts & ~first, logits, -jnp.inf).max(-1)
    return loss, logits[..., 0] > others


def word2vec(config: CbowObjective | SkipGramObjective, tasks: int) -> Objective:
    """Loss of each center (CBOW: of the mean of its window) or of each pair (skip-gram), summed over its targets.

    CBOW is called `cbow`, skip-gram `skip_gram`. The latter predicts the center from each token of its window, as
    word2vec.c; the pairs of a center share its negatives, which changes no expectation. The gradient of a mean is
    divided by the size of the window, which word2vec.c leaves out. The divisor of the training loss is the number of
    tokens before subsampling, for skip-gram times that of an expected window.
    """
    pairs = config.kind == "skip_gram"
    share = config.window + 1 if pairs else 1

    def normalizers(batch: Batch) -> dict[str, jax.Array]:
        return {config.kind: jnp.maximum((batch["frequencies"] > 0).sum() * share, 1).astype(jnp.float32)}

    def losses(model: Word2Vec, batch: Batch, key: jax.Array | None) -> dict[str, LossTerm]:
        keys = jax.random.split(jax.random.key(EVALUATION_KEY) if key is None else key)
        windows = make_windows(batch, config.window, config.sample, keys[0])
        negatives = draw_negatives(batch, config.negatives, keys[1])
        targets = jnp.concatenate([windows.ids[..., None], negatives], axis=-1)
        rows, length, count = targets.shape
        outputs = model.output_vectors(targets.reshape(rows, -1)).reshape(rows, length, count, -1)
        inputs = model.input_vectors(windows.ids)
        around = jnp.stack([jnp.roll(inputs, -offset, axis=1) for offset in windows.offsets], axis=2)
        inside = windows.inside.astype(jnp.float32)
        if pairs:
            logits = jnp.einsum("bswd,bskd->bswk", around, outputs)
            loss, right = sampled_losses(logits, jnp.broadcast_to(targets[:, :, None], logits.shape))
            flat = [x.reshape(rows, -1) for x in (loss, right, inside)]
        else:
            size = inside.sum(-1)
            mean = jnp.einsum("bswd,bsw->bsd", around, inside / jnp.maximum(size, 1)[..., None])
            flat = [*sampled_losses(jnp.einsum("bsd,bskd->bsk", mean, outputs), targets), (size > 0) * 1.0]
        return {config.kind: weighted_sums(flat[0], flat[1], flat[2], batch, tasks)}

    return Objective(("context",), 2, {config.kind: 1.0}, normalizers, losses)


CBOW = ObjectiveKind(word2vec)
SKIP_GRAM = ObjectiveKind(word2vec)
