"""Decoding on models small enough to enumerate: brute force, the reference's algorithm in plain Python, frequencies."""

import itertools
import math
from functools import cache, partial
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beams import t5x_beams, transformers_beams
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bertjax.models.decoding.beam import Rules, beam_answers, beam_search, length_penalty
from bertjax.models.decoding.processors import Processors
from bertjax.models.decoding.sample import EOS, filter_logits, greedy, sample, sample_answers

STATES = 61


class Cache(NamedTuple):
    tokens: jax.Array  # [B, slots]
    visible: jax.Array  # [B, slots]
    table: jax.Array  # [B]


class Table:
    """A "model" whose logits [V] depend on the input and, through a hash, on every token before: `table[input, hash]`.

    The cache is the tokens: one that is written late or to another slot, or a beam that sees another's, shows at once.
    """

    def __init__(self, table: np.ndarray, architecture: str = "encoder_decoder"):
        self.table = jnp.asarray(table, jnp.float32)
        self.config = SimpleNamespace(architecture=architecture, decoder_start_token_id=0)

    def encode(self, input_ids, segment_ids):
        return input_ids[:, :1]

    def init_cache(self, hidden, segment_ids, length):
        first = jnp.zeros(len(segment_ids), jnp.int32) if hidden is None else hidden[:, 0]
        empty = jnp.zeros((len(first), length), jnp.int32)
        return Cache(empty, empty > 0, first)

    def prefill(self, ids, segment_ids, prefix_mask, cache):
        width = ids.shape[1]
        tokens, visible = cache.tokens.at[:, :width].set(ids), cache.visible.at[:, :width].set(segment_ids > 0)
        cache = Cache(tokens, visible, cache.table)
        return self._logits(cache, visible[:, None])[:, 0], cache

    def decode_step(self, ids, cache, index):
        logits, cache, _ = self.beam_step(ids[:, None], cache, index, cache.visible[:, None])
        return logits[:, 0], cache

    def beam_step(self, ids, cache, at, seen):
        slots = jnp.arange(seen.shape[2])
        seen = seen | (slots == at + jnp.arange(ids.shape[1])[:, None])
        tokens = jax.lax.dynamic_update_slice_in_dim(cache.tokens, ids, at, 1)
        cache = Cache(tokens, cache.visible | seen.any(1), cache.table)
        return self._logits(cache, seen), cache, seen

    def _logits(self, cache, seen):
        def read(state, slot):
            token, mine = slot
            return jnp.where(mine, (state * 7 + token[:, None] + 1) % STATES, state), None

        slots = (cache.tokens.T, jnp.moveaxis(seen, 2, 0))
        state, _ = jax.lax.scan(read, jnp.zeros(seen.shape[:2], jnp.int32), slots)
        return self.table[cache.table[:, None], state]


def log_p(table: np.ndarray, row: int, tokens: tuple[int, ...], start: tuple[int, ...] = (0,)) -> np.ndarray:
    """Log probabilities [V] of the token after these."""
    state = 0
    for token in (*start, *tokens):
        state = (state * 7 + token + 1) % STATES
    logits = table[row, state].astype(np.float64)
    return logits - np.log(np.exp(logits).sum())


def tables(rows: int, vocabulary: int, seed: int, eos: float = 0.0, spread: float = 1.0) -> np.ndarray:
    table = np.random.default_rng(seed).normal(size=(rows, STATES, vocabulary)) * spread
    table[..., EOS] += eos
    return table.astype(np.float32)


def inputs(rows: int) -> tuple[jax.Array, jax.Array]:
    """Row r is about table r."""
    ids = jnp.arange(rows, dtype=jnp.int32)[:, None]
    return jnp.pad(ids, ((0, 0), (0, 2))), jnp.ones((rows, 3), jnp.int32)


def padded(tokens: tuple[int, ...], length: int) -> list[int]:
    return [*tokens, *([0] * (length - len(tokens)))]


# ---- beam search ----------------------------------------------------------------------------------------------------


def answers(vocabulary: int, length: int):
    """Every finished answer of at most `length` tokens."""
    others = [token for token in range(vocabulary) if token != EOS]
    for size in range(length):
        for tokens in itertools.product(others, repeat=size):
            yield (*tokens, EOS)


def joint(table: np.ndarray, row: int, tokens: tuple[int, ...]) -> float:
    return sum(log_p(table, row, tokens[:i])[token] for i, token in enumerate(tokens))


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize(("vocabulary", "length"), [(3, 5), (4, 4)])
def test_a_beam_wide_enough_finds_the_best_answer_of_all(vocabulary, length, alpha):
    table = tables(5, vocabulary, seed=vocabulary)
    width = (vocabulary - 1) ** length  # as many as there are unfinished answers
    ids, scores = beam_search(Table(table), *inputs(5), length, beam_size=width, alpha=alpha)
    for row in range(5):
        score = lambda t: joint(table, row, t) / ((5 + len(t)) / 6) ** alpha  # noqa: B023, E731
        best = max(answers(vocabulary, length), key=score)
        assert ids[row].tolist() == padded(best, length)
        assert scores[row] == pytest.approx(score(best), abs=1e-5)


@cache
def search(beams: int, length: int, rules: Rules):
    return jax.jit(lambda t, i, s, a: beam_search(Table(t), i, s, length, beam_size=beams, alpha=a, rules=rules))


@pytest.mark.parametrize("rules", ["t5x", "transformers"])
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4]), st.sampled_from([0.0, 0.6, 1.5]), st.sampled_from([-3, 0, 2]))
@settings(max_examples=25, deadline=None)
def test_beams_are_those_of_the_reference_algorithm(rules, seed, beams, alpha, eos):
    """Of each row alone: that others of the batch go on after it is done does not change it."""
    rows, vocabulary, length = 4, 11, 9
    table = tables(rows, vocabulary, seed, eos)
    ids, scores = search(beams, length, rules)(jnp.asarray(table), *inputs(rows), alpha)
    plain = t5x_beams if rules == "t5x" else partial(transformers_beams, never=False)
    for row in range(rows):
        score, tokens = plain(partial(log_p, table, row), length, beams, alpha)
        assert scores[row] == pytest.approx(score, abs=2e-5)
        if ids[row].tolist() != padded(tokens, length):  # a state may be reached twice: two texts of one score
            own = sum(log_p(table, row, tuple(ids[row, :n].tolist()))[int(ids[row, n])] for n in range(length))
            assert EOS not in ids[row] and alpha == 0 and own == pytest.approx(score, abs=2e-5)


def test_where_nothing_finishes_the_best_open_beam_is_the_answer():
    table = tables(2, 20, seed=0, eos=-60)
    ids, scores = beam_search(Table(table), *inputs(2), 5, beam_size=3, alpha=0.6)
    for row in range(2):
        score, tokens = t5x_beams(partial(log_p, table, row), 5, 3, 0.6)
        assert ids[row].tolist() == list(tokens) and EOS not in tokens
        assert scores[row] == pytest.approx(score, abs=1e-5)  # without penalty, as the reference has it


def test_open_beams_follow_the_finished_ones():
    """By t5x's rules, with four answers of five beams: answers differ, and no finished one is behind an open one."""
    rows, length = 6, 4
    table = tables(rows, 9, seed=3, eos=-1.0)
    ids, scores = beam_answers(Table(table), *inputs(rows), length, 4, beam_size=5, alpha=0.6)
    best, best_scores = beam_search(Table(table), *inputs(rows), length, beam_size=5, alpha=0.6)
    np.testing.assert_array_equal(ids[:, 0], best)
    np.testing.assert_array_equal(scores[:, 0], best_scores)
    mixed = 0
    for row in range(rows):
        found = [tuple(one) for one in ids[row].tolist()]
        ended = [EOS in one for one in found]
        assert len(set(found)) == 4 and ended == sorted(ended, reverse=True)
        mixed += 0 < sum(ended) < 4
        for one, score, is_ended in zip(found, scores[row].tolist(), ended, strict=True):
            tokens = one[: one.index(EOS) + 1] if is_ended else one
            penalty = ((5 + len(tokens)) / 6) ** 0.6 if is_ended else 1
            assert score == pytest.approx(joint(table, row, tokens) / penalty, abs=1e-4)
    assert mixed


def test_penalty():
    """arXiv 1609.08144 equation 14, by hand."""
    assert float(length_penalty(0.6, 1)) == 1.0
    assert float(length_penalty(0.6, 7)) == pytest.approx(2**0.6)
    assert float(length_penalty(0.0, 50)) == 1.0


def test_penalty_of_transformers():
    """length^alpha, by hand."""
    assert float(length_penalty(2.0, 7, "transformers")) == 49.0
    assert float(length_penalty(0.5, 9, "transformers")) == pytest.approx(3.0)
    assert float(length_penalty(0.0, 50, "transformers")) == 1.0


# ---- greedy search --------------------------------------------------------------------------------------------------


def test_greedy_takes_the_likeliest_token_and_stops_at_eos():
    table, length = tables(6, 9, seed=1, eos=1.0), 12
    ids = greedy(Table(table), *inputs(6), length)
    ended = 0
    for row in range(6):
        tokens: tuple[int, ...] = ()
        while len(tokens) < length and EOS not in tokens:
            tokens += (int(log_p(table, row, tokens).argmax()),)
        assert ids[row].tolist() == padded(tokens, length)
        ended += EOS in tokens
    assert 0 < ended
    assert ids.dtype == jnp.int32


def test_the_loop_ends_with_the_last_row():
    """A model that counts its steps: as many as the longest answer has tokens."""
    table = tables(3, 5, seed=2, eos=3.0)
    steps = []

    class Counting(Table):
        def decode_step(self, ids, cache, index):
            jax.debug.callback(lambda i: steps.append(int(i)), index)
            return super().decode_step(ids, cache, index)

    ids = greedy(Counting(table), *inputs(3), 64)
    jax.effects_barrier()
    assert len(steps) == max((np.asarray(row) == EOS).argmax() + 1 for row in ids) < 64


# ---- sampling -------------------------------------------------------------------------------------------------------


def test_what_top_k_and_top_p_keep():
    """By hand; the order (k, then p of what is left) is transformers'."""
    p = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.7, 0.1]], np.float32)
    support = lambda **options: (np.asarray(filter_logits(jnp.log(p), **options)) > -100).tolist()  # noqa: E731
    assert support(top_k=None, top_p=None) == [[True] * 4] * 2
    assert support(top_k=2, top_p=None)[0] == [True, True, False, False]
    assert support(top_k=1, top_p=None)[1] == [False, False, True, False]
    assert support(top_k=2, top_p=None)[1] == [True] * 4  # equal ones stay together
    assert support(top_k=None, top_p=0.69)[0] == [True, True, False, False]
    assert support(top_k=None, top_p=0.71)[0] == [True, True, True, False]
    assert support(top_k=None, top_p=0.01) == [[True, False, False, False], [False, False, True, False]]
    assert support(top_k=2, top_p=0.5)[0] == [True, False, False, False]  # 0.4 / 0.7 reaches one half
    assert support(top_k=9, top_p=1.0) == [[True] * 4] * 2


@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(0.01, 1.0))
@settings(max_examples=50, deadline=None)
def test_the_nucleus_is_the_smallest_set_that_reaches_p(seed, top_k, top_p):
    logits = np.random.default_rng(seed).normal(size=(1, 10)).astype(np.float32) * 2
    order = np.argsort(-logits[0])[:top_k]
    p = np.exp(logits[0, order].astype(np.float64))
    mass = np.cumsum(p / p.sum())
    if np.abs(mass - top_p).min() < 1e-5:
        return  # on the edge, rounding decides
    size = min(int((mass < top_p).sum()) + 1, len(order))
    found = np.flatnonzero(np.asarray(filter_logits(jnp.asarray(logits), top_k, top_p))[0] > -1e29)
    assert sorted(found.tolist()) == sorted(order[:size].tolist())


@pytest.mark.parametrize(
    ("temperature", "options"),
    [(1.0, {}), (0.5, {}), (2.0, {}), (1.0, {"top_k": 3}), (1.0, {"top_p": 0.8}), (1.5, {"top_k": 4, "top_p": 0.9})],
)
def test_frequencies_are_those_of_the_softmax(temperature, options):
    """Chi-square over 20,000 first tokens; the key is fixed, so it is one draw, at the 0.1 % level."""
    rows, vocabulary = 20_000, 6
    table = tables(1, vocabulary, seed=4)
    logits = log_p(table, 0, ()) / temperature
    allowed = (
        np.asarray(filter_logits(jnp.asarray(logits[None]), options.get("top_k"), options.get("top_p")))[0] > -1e29
    )
    p = np.where(allowed, np.exp(logits), 0)
    zeros, ones = jnp.zeros((rows, 1), jnp.int32), jnp.ones((rows, 1), jnp.int32)
    ids = sample(
        Table(table), zeros, ones, 1, jax.random.key(0), jnp.arange(rows), temperature=temperature, **options
    )  # fmt: skip
    counts = np.bincount(np.asarray(ids)[:, 0], minlength=vocabulary)
    assert not counts[~allowed].any()
    expected = rows * p[allowed] / p.sum()
    assert stats.chisquare(counts[allowed], expected).pvalue > 1e-3


def test_a_rows_text_is_its_own():
    """Alone, in another order, in a larger batch: the same tokens; and other ones with another key or number."""
    table, length = tables(8, 9, seed=5), 10
    key = jax.random.key(3)
    ids, real = inputs(8)
    run = lambda picked, key=key, numbers=None: np.asarray(  # noqa: E731
        sample(
            Table(table), ids[picked], real[picked], length, key, jnp.asarray(picked if numbers is None else numbers)
        )
    )
    whole = run(np.arange(8))
    np.testing.assert_array_equal(run(np.arange(8)), whole)
    np.testing.assert_array_equal(run(np.array([5])), whole[5:6])
    np.testing.assert_array_equal(run(np.array([7, 2, 4])), whole[[7, 2, 4]])
    assert (run(np.arange(8), jax.random.key(4)) != whole).any()
    assert (run(np.array([5]), numbers=[6]) != whole[5]).any()
    np.testing.assert_array_equal(
        sample(Table(table), ids, real, length, key, jnp.arange(8), top_k=1), greedy(Table(table), ids, real, length)
    )


def test_several_samples_of_a_row():
    """The first is that of `sample`; they differ, depend on their row alone, and score their log probability."""
    table, length, rows = tables(4, 9, seed=5), 6, jnp.arange(4)
    key, model = jax.random.key(3), Table(table)
    ids, scores = sample_answers(model, *inputs(4), length, key, rows, 3, temperature=0.8)
    np.testing.assert_array_equal(ids[:, 0], sample(model, *inputs(4), length, key, rows, temperature=0.8))
    assert all(len({tuple(one) for one in ids[row].tolist()}) > 1 for row in range(4))
    one, real = (x[2:3] for x in inputs(4))
    alone = sample_answers(model, one, real, length, key, rows[2:3], 3, temperature=0.8)
    np.testing.assert_array_equal(alone.ids[0], ids[2])
    for row, number in itertools.product(range(4), range(3)):
        tokens = ids[row, number].tolist()
        tokens = tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
        warm = [log_p(table, row, tuple(tokens[:i])) / 0.8 for i in range(len(tokens))]
        own = sum(x[token] - np.log(np.exp(x).sum()) for x, token in zip(warm, tokens, strict=True))
        assert scores[row, number] == pytest.approx(own, abs=1e-4)


# ---- a decoder alone ------------------------------------------------------------------------------------------------


def prompts() -> tuple[np.ndarray, np.ndarray, list[tuple[int, ...]]]:
    texts = [(5, 3, 2, 4), (2,), (6, 6)]
    ids = np.array([padded(text, 4) for text in texts], np.int32)
    return ids, (ids > 0).astype(np.int32), texts


def test_a_decoder_alone_goes_on_from_its_prompt():
    table, length = tables(1, 7, seed=6, eos=0.5), 8
    ids, real, texts = prompts()
    model = Table(table, "decoder_only")
    found = greedy(model, jnp.asarray(ids), jnp.asarray(real), length)
    beams, scores = beam_search(model, jnp.asarray(ids), jnp.asarray(real), length, beam_size=4)
    for row, text in enumerate(texts):
        after = partial(log_p, table, 0, start=(0, *text))
        tokens: tuple[int, ...] = ()
        while len(tokens) < length and EOS not in tokens:
            tokens += (int(after(tokens).argmax()),)
        assert found[row].tolist() == padded(tokens, length)
        score, best = t5x_beams(after, length, 4, 0.6)
        assert beams[row].tolist() == padded(best, length)
        assert math.isclose(scores[row], score, abs_tol=1e-5)


def test_a_decoder_alone_repeats_no_pair_of_its_prompt():
    """Greedy search and several samples; the prompts have padding."""
    table, length = tables(1, 7, seed=6, eos=-2.0), 8
    ids, real, texts = prompts()
    model, processors = Table(table, "decoder_only"), Processors(no_repeat_ngram_size=2, min_new_tokens=3)
    found = greedy(model, jnp.asarray(ids), jnp.asarray(real), length, processors=processors)
    for row, text in enumerate(texts):
        past = [0, *text]
        while len(past) < 1 + len(text) + length and EOS not in past:
            scores = log_p(table, 0, tuple(past[1:])).copy()
            pairs = {b for a, b in itertools.pairwise(past) if a == past[-1]}
            scores[[*pairs, *([EOS] if len(past) - 1 - len(text) < 3 else [])]] = -np.inf
            past.append(int(scores.argmax()))
        assert found[row].tolist() == padded(tuple(past[1 + len(text) :]), length)
    drawn, _ = sample_answers(
        model, jnp.asarray(ids), jnp.asarray(real), length, jax.random.key(0), jnp.arange(3), 4, processors=processors
    )
    for row, number in itertools.product(range(3), range(4)):
        answer = drawn[row, number].tolist()
        past = [0, *texts[row], *(answer[: answer.index(EOS)] if EOS in answer else answer)]
        assert len(set(itertools.pairwise(past))) == len(past) - 1 >= len(texts[row]) + 3
