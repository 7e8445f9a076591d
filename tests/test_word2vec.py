"""CBOW and skip-gram against a numpy rendering of word2vec.c; counts of draws; neighbors on a corpus of two topics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.config.schema.ladder_models import Word2VecConfig
from bertjax.config.schema.ladder_objectives import CbowObjective, SkipGramObjective
from bertjax.models import registry
from bertjax.objectives import registry as objectives
from bertjax.objectives import word2vec

VOCABULARY, WIDTH = 30, 6


def make_batch(rng: np.random.Generator, rows: int = 3, length: int = 14, words: range = range(4, VOCABULARY)):
    """Packed rows of two examples, [CLS] 2 and [SEP] 3 around random tokens, with the frequencies of the batch."""
    ids, segments, places = np.zeros((3, rows, length), np.int32)
    for row in range(rows):
        at = 0
        for number in (1, 2):
            count = int(rng.integers(2, length // 2 - 1))
            ids[row, at : at + count + 2] = [2, *rng.choice(words, count), 3]
            segments[row, at : at + count + 2], places[row, at : at + count + 2] = number, np.arange(count + 2)
            at += count + 2
    counts = np.bincount(ids[ids > 3], minlength=VOCABULARY)
    frequencies = (counts / counts.sum()).astype(np.float32)[ids] * (ids > 3)
    batch = {"input_ids": ids, "token_type_ids": 0 * ids, "segment_ids": segments, "positions": places}
    batch |= {"cls_positions": np.zeros((rows, 2), np.int32), "frequencies": frequencies}
    return {name: jnp.asarray(x) for name, x in batch.items()}


def reference(batch, params, width, negatives, pairs: bool) -> tuple[float, int]:
    """The loop of word2vec.c over the words of each sentence: (sum of losses, centers or pairs)."""
    syn0, syn1 = (np.asarray(params[f"{name}/embedding"]) for name in ("embeddings/word", "heads/context"))
    ids, segments, known = (np.asarray(batch[name]) for name in ("input_ids", "segment_ids", "frequencies"))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    total, count = 0.0, 0
    for row in range(len(ids)):
        words = [(ids[row, n], segments[row, n]) for n in range(ids.shape[1]) if known[row, n] > 0]
        for n, (center, segment) in enumerate(words):
            around = [
                words[m][0] for m in range(n - width[row, n], n + width[row, n] + 1)
                if m != n and 0 <= m < len(words) and words[m][1] == segment
            ]  # fmt: skip
            if not around:
                continue
            sources = [syn0[word] for word in around] if pairs else [np.mean([syn0[word] for word in around], axis=0)]
            for source in sources:
                total -= np.log(sigmoid(source @ syn1[center]))
                total -= sum(np.log(sigmoid(-source @ syn1[w])) for w in negatives[row, n] if w != center)
                count += 1
    return total, count


@pytest.fixture(scope="module")
def params():
    config = Word2VecConfig(vocab_size=VOCABULARY, hidden_size=WIDTH)
    fresh = registry.init_params(config, ("context",), 2, jax.random.key(0))
    return {path: jax.random.normal(jax.random.key(n), x.shape) for n, (path, x) in enumerate(fresh.items())}


@pytest.mark.parametrize("section", [CbowObjective, SkipGramObjective])
def test_the_loss_is_that_of_word2vec_c(section, params):
    config, batch = section(window=3, negatives=4, sample=0.0), make_batch(np.random.default_rng(0))
    model = registry.build_model(Word2VecConfig(vocab_size=VOCABULARY, hidden_size=WIDTH), ("context",), params)
    key = jax.random.key(7)
    (term,) = objectives.build(config).losses(model, batch, key).values()
    keys = jax.random.split(key)
    windows, negatives = word2vec.make_windows(batch, 3, 0.0, keys[0]), word2vec.draw_negatives(batch, 4, keys[1])
    inside = np.asarray(windows.inside)
    width = np.asarray(1 + (word2vec.hash_bits(jax.random.split(keys[0])[1], windows.ids.shape) % 3).astype(int))
    assert inside.any() and set(width.ravel()) == {1, 2, 3}
    total, count = reference(batch, params, width, np.asarray(negatives), section is SkipGramObjective)
    np.testing.assert_allclose(term.loss, total, rtol=1e-5)
    assert int(term.weight) == count


def test_subsampling_keeps_tokens_as_often_as_word2vec_c():
    frequencies = np.array([0.0, 1e-4, 1e-3, 0.01, 0.2], np.float32)
    expected = [0.0] + [min(1.0, (np.sqrt(f / 1e-3) + 1) * 1e-3 / f) for f in frequencies[1:].astype(float)]
    np.testing.assert_allclose(word2vec.keep_probability(jnp.asarray(frequencies), 1e-3), expected, rtol=1e-5)
    batch = make_batch(np.random.default_rng(3), rows=2000)
    windows = word2vec.make_windows(batch, 2, 0.01, jax.random.key(0))
    chances = np.asarray(word2vec.keep_probability(batch["frequencies"], 0.01))
    kept = np.asarray((windows.ids > 3) & windows.inside.any(-1)).sum()
    assert 0.5 * chances.sum() < kept <= 1.05 * chances.sum()


def test_negatives_follow_the_frequency_to_the_power_three_quarters():
    rng = np.random.default_rng(0)
    chance = 1.0 / np.arange(1, 21)
    batch = make_batch(rng, rows=300)
    ids = rng.choice(np.arange(4, 24), batch["input_ids"].shape, p=chance / chance.sum())
    ids = jnp.where(batch["frequencies"] > 0, ids, batch["input_ids"])
    counts = np.bincount(np.asarray(ids[batch["frequencies"] > 0]), minlength=VOCABULARY)
    frequencies = jnp.asarray(counts / counts.sum(), jnp.float32)[ids]
    drawn = word2vec.draw_negatives(batch | {"input_ids": ids, "frequencies": frequencies}, 8, jax.random.key(1))
    found = np.bincount(np.asarray(drawn).ravel(), minlength=VOCABULARY) / drawn.size
    np.testing.assert_allclose(found, counts**0.75 / (counts**0.75).sum(), atol=0.01)


@pytest.mark.parametrize("section", [CbowObjective, SkipGramObjective])
def test_neighbors_are_of_the_same_topic(section):
    """Two topics of ten words each that never share a text: the nearest words are of the same topic."""
    rng = np.random.default_rng(0)
    config = Word2VecConfig(vocab_size=VOCABULARY, hidden_size=16)
    model_params = registry.init_params(config, ("context",), 2, jax.random.key(0))
    objective = objectives.build(section(window=3, sample=0.0))

    def loss(params, batch, key):
        terms = objective.losses(registry.build_model(config, ("context",), params), batch, key)
        return objective.total_loss(terms, objective.normalizers(batch))

    step = jax.jit(
        lambda params, batch, key: jax.tree.map(lambda w, g: w - 4.0 * g, params, jax.grad(loss)(params, batch, key))
    )
    for number in range(150):
        halves = [make_batch(rng, rows=16, words=range(low, low + 10)) for low in (4, 14)]
        batch = {name: jnp.concatenate([half[name] for half in halves]) for name in halves[0]}
        model_params = step(model_params, batch | {"frequencies": batch["frequencies"] / 2}, jax.random.key(number))
    vectors = np.array(model_params["embeddings/word/embedding"])[4:24]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T - 2 * np.eye(20)
    nearest = np.argsort(-cosines, axis=1)[:, :5]
    assert (nearest // 10 == np.arange(20)[:, None] // 10).mean() > 0.95
