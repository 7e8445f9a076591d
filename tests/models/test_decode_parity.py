"""Decoding as transformers' torch T5 decodes, token for token: greedy search, and beams by its rules; by t5x's rules
where these are the same."""

import itertools
from contextlib import contextmanager
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beams import t5x_beams, transformers_beams

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

torch.set_num_threads(1)  # models this small only wait for each other's threads

from decoding_pair import LENGTH, ROWS, VERSIONS, V, generate, inputs, pair  # noqa: E402

from bertjax.models.decoding.beam import beam_search  # noqa: E402
from bertjax.models.decoding.sample import filter_logits, greedy  # noqa: E402


@pytest.mark.parametrize("version", VERSIONS)
def test_greedy_search_token_for_token(version):
    theirs, ours = pair(version)
    expected = generate(theirs, num_beams=1)
    np.testing.assert_array_equal(jax.jit(lambda i, s: greedy(ours, i, s, LENGTH))(*inputs()), expected)
    assert len({tuple(row) for row in expected.tolist()}) >= ROWS // 2, "the inputs matter"


class Inclined:
    """Our model with something added to the logit of EOS at every step."""

    def __init__(self, model, amount: float):
        self.model, self.amount = model, amount
        self.config, self.encode, self.init_cache = model.config, model.encode, model.init_cache

    def beam_step(self, *args):
        logits, cache, seen = self.model.beam_step(*args)
        return logits.at[..., 1].add(self.amount), cache, seen


@contextmanager
def inclined(model, amount: float):
    """The same of transformers' model."""
    added = torch.tensor([amount if token == 1 else 0.0 for token in range(V)])
    hook = model.lm_head.register_forward_hook(lambda _module, _inputs, logits: logits + added)
    yield
    hook.remove()


@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize("version", VERSIONS)
def test_beams_by_transformers_rules_token_for_token(version, beams):
    """Every row, however long its answer; one program for all penalties and all that is added to EOS."""
    theirs, ours = pair(version)

    @jax.jit
    def search(ids, real, alpha, eos):
        model = Inclined(ours, eos)
        return beam_search(model, ids, real, LENGTH, beam_size=beams, alpha=alpha, rules="transformers")[0]

    lengths = []
    for eos, penalty in itertools.product((0.0, 0.3, 0.6, 1.5), (-1.0, 0.0, 0.6, 1.0, 2.0)):
        with inclined(theirs, eos):
            expected = generate(theirs, num_beams=beams, length_penalty=penalty, early_stopping=False)
        np.testing.assert_array_equal(search(*inputs(), penalty, eos), expected, err_msg=f"{penalty=} {eos=}")
        lengths += [row.index(1) if 1 in row else LENGTH for row in expected.tolist()]
    assert np.mean(np.array(lengths) < LENGTH) > 0.4 and len(set(lengths)) > 5, "beams end, early and late"


def next_log_p(model, row: int):
    """(tokens) -> log probabilities [V] of the next one, by the model on the whole prefix."""
    ids, real = inputs()
    ids, real = ids[row : row + 1], real[row : row + 1]
    hidden = model.encode(ids, real)

    @jax.jit
    def all_positions(decoder_ids):
        return jax.nn.log_softmax(model.logits(model.decode(decoder_ids, jnp.ones_like(decoder_ids), hidden, real)))[0]

    @cache
    def log_p(tokens):
        decoder_ids = np.zeros((1, LENGTH), np.int32)
        decoder_ids[0, 1 : len(tokens) + 1] = tokens
        return np.asarray(all_positions(decoder_ids))[len(tokens)].tolist()

    return log_p


def padded(tokens) -> list[int]:
    return [*tokens, *([0] * (LENGTH - len(tokens)))]


@pytest.mark.parametrize("version", VERSIONS)
def test_beams_token_for_token_where_the_rules_agree(version):
    """Without length penalty two of the differences that models/decoding/beam.py lists remain.

    The plain-Python form of either set of rules says in which rows they matter: there each program follows its own, in
    all others both give the same tokens.
    """
    theirs, ours = pair(version)
    expected = generate(theirs, num_beams=4, length_penalty=0.0)
    found = np.asarray(jax.jit(lambda i, s: beam_search(ours, i, s, LENGTH, beam_size=4, alpha=0.0)[0])(*inputs()))
    same = 0
    for row in range(ROWS):
        log_p = next_log_p(ours, row)
        by_t5x = padded(t5x_beams(log_p, LENGTH, 4, 0.0)[1])
        by_transformers = padded(transformers_beams(log_p, LENGTH, 4, 0.0, never=False)[1])
        assert found[row].tolist() == by_t5x
        assert expected[row].tolist() == by_transformers
        same += by_t5x == by_transformers
    np.testing.assert_array_equal((found == expected).all(1).sum(), same)
    assert same >= ROWS // 3


@pytest.mark.parametrize("version", VERSIONS)
def test_beams_that_never_finish_token_for_token(version):
    """No EOS: what is left of both searches is the open beams, and these are the same under any penalty."""
    theirs, ours = pair(version)
    with inclined(theirs, -1e9):
        expected = generate(theirs, num_beams=5)
    found = jax.jit(lambda i, s: beam_search(Inclined(ours, -1e9), i, s, LENGTH, beam_size=5)[0])(*inputs())
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("penalty", "early_stopping"), [(1.0, False), (1.0, "never"), (2.0, "never")])
def test_what_transformers_does_otherwise(penalty, early_stopping):
    """models/decoding/beam.py lists all differences: these rules, in plain Python, are those of transformers."""
    theirs, ours = pair("1.0")
    found = generate(theirs, num_beams=3, length_penalty=penalty, early_stopping=early_stopping)
    for row in range(ROWS):
        rules = partial(transformers_beams, length=LENGTH, beams=3, alpha=penalty, never=early_stopping == "never")
        assert found[row].tolist() == padded(rules(next_log_p(ours, row))[1])


@pytest.mark.parametrize(("top_k", "top_p"), [(5, None), (None, 0.9), (None, 0.05), (20, 0.7), (1, 0.5), (50, 1.0)])
def test_top_k_and_top_p_keep_what_transformers_keeps(top_k, top_p):
    logits = np.random.default_rng(0).normal(size=(64, 40)).astype(np.float32) * 2
    warpers = transformers.LogitsProcessorList()
    if top_k is not None:
        warpers.append(transformers.TopKLogitsWarper(top_k))
    if top_p is not None:
        warpers.append(transformers.TopPLogitsWarper(top_p))
    expected = warpers(None, torch.tensor(logits)).numpy() > -np.inf
    np.testing.assert_array_equal(np.asarray(filter_logits(jnp.asarray(logits), top_k, top_p)) > -1e29, expected)
