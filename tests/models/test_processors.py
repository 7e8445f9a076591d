"""Constraints on tokens, several answers and their scores, against transformers' torch code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

torch.set_num_threads(1)

from decoding_pair import LENGTH, ROWS, call_generate, generate, inputs, pair, without_start  # noqa: E402

from bertjax.models.decoding.beam import beam_answers, beam_search  # noqa: E402
from bertjax.models.decoding.processors import NO_TOKEN, Constraints, Processors, constrain  # noqa: E402
from bertjax.models.decoding.sample import filter_logits, greedy, greedy_answers, sample  # noqa: E402

EOS = 1
OPTIONS = [
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"min_new_tokens": 5},
    {"bad_words_ids": [[3], [4, 2], [2, 2, 5], [EOS]]},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 4, "bad_words_ids": [[2], [3, 4]]},
]


def ours(options: dict) -> Processors:
    words = tuple(map(tuple, options.get("bad_words_ids", ())))
    return Processors(**options | {"bad_words_ids": words})


def theirs(options: dict, prompt: int):
    """transformers' processors by its own rules of order, for inputs with `prompt` tokens before the new ones."""
    model, _ = pair("1.0")
    config = transformers.GenerationConfig(**options, eos_token_id=EOS, pad_token_id=0, decoder_start_token_id=0)
    model._prepare_special_tokens(config, kwargs_has_attention_mask=True)
    return model._get_logits_processor(config, input_ids_seq_length=prompt, model_kwargs={})


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_processors_change_what_transformers_changes(options):
    """Few tokens, so that n-grams and words occur; all lengths, one program; with an axis of beams or without."""
    rng, vocabulary, rows = np.random.default_rng(0), 7, 40
    scores = rng.normal(size=(rows, vocabulary)).astype(np.float32) * 2
    past = np.concatenate([np.zeros((rows, 1)), rng.integers(2, vocabulary, (rows, 9))], axis=1).astype(np.int32)
    constraints = Constraints(ours(options), jnp.asarray(past[:, :1]), EOS)
    run = jax.jit(lambda scores, ids, length: constraints(scores, ids, length))
    beams = Constraints(ours(options), jnp.asarray(past[: rows // 2, :1]), EOS)
    run_beams = jax.jit(lambda scores, ids, length: beams(scores, ids, length))
    processors, changed = theirs(options, 1), 0
    for length in range(10):
        expected = processors(torch.tensor(past[:, : length + 1]).long(), torch.tensor(scores)).numpy()
        expected = np.where(np.isinf(expected), -1e30, expected)
        ids = np.where(np.arange(9) < length, past[:, 1:], 0)
        np.testing.assert_allclose(run(scores, ids, length), expected, rtol=1e-6)
        found = run_beams(scores.reshape(rows // 2, 2, -1), ids.reshape(rows // 2, 2, -1), length)
        np.testing.assert_allclose(found.reshape(rows, -1), expected, rtol=1e-6)
        changed += (expected != scores).sum()
    assert changed > 20


def test_sampling_draws_from_the_distribution_of_transformers():
    """Penalty and n-grams before temperature, then top_k, then top_p."""
    options = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "temperature": 0.7, "top_k": 5, "top_p": 0.8}
    rng, rows = np.random.default_rng(1), 30
    scores = rng.normal(size=(rows, 8)).astype(np.float32)
    past = rng.integers(2, 8, (rows, 9)).astype(np.int32)
    expected = theirs(options | {"do_sample": True}, 1)(torch.tensor(past).long(), torch.tensor(scores))
    processors = Processors(repetition_penalty=1.5, no_repeat_ngram_size=2)
    found = Constraints(processors, jnp.asarray(past[:, :1]), EOS)(jnp.asarray(scores), past[:, 1:], jnp.int32(8))
    probabilities = jax.nn.softmax(filter_logits(found / 0.7, 5, 0.8), axis=-1)
    np.testing.assert_allclose(probabilities, torch.softmax(expected, -1).numpy(), atol=1e-6)


def test_the_past_of_a_decoder_alone_is_its_prompt_without_padding():
    class Model:
        class config:
            architecture, decoder_start_token_id = "decoder_only", 0

    ids = jnp.array([[5, 3, 4], [6, 0, 0]], jnp.int32)
    made = constrain(Processors(min_new_tokens=1), Model, ids, (ids > 0).astype(jnp.int32), EOS, copies=2)
    rows = [[0, 5, 3, 4], [NO_TOKEN, NO_TOKEN, 0, 6]]
    assert made.prompt.tolist() == [rows[0], rows[0], rows[1], rows[1]]
    for options in OPTIONS:
        constraints = Constraints(ours(options), made.prompt[::2], EOS)
        new, scores = np.array([[3, 4, 5], [6, 2, 6]], np.int32), np.linspace(-1, 1, 14, dtype=np.float32).reshape(2, 7)
        found = np.asarray(constraints(jnp.asarray(scores), new, jnp.int32(3)))
        for row, prompt in enumerate(([0, 5, 3, 4], [0, 6])):
            past = torch.tensor([[*prompt, *new[row].tolist()]])
            expected = theirs(options, len(prompt))(past, torch.tensor(scores[row : row + 1])).numpy()[0]
            np.testing.assert_allclose(found[row], np.where(np.isinf(expected), -1e30, expected), rtol=1e-6)


COMBINED = [OPTIONS[-1], {"repetition_penalty": 0.6, "min_new_tokens": 3, "no_repeat_ngram_size": 3}]


@pytest.mark.parametrize("options", [COMBINED[0], pytest.param(COMBINED[1], marks=pytest.mark.slow)], ids=str)
def test_greedy_search_token_for_token_and_its_scores(options):
    model, mine = pair("1.0")
    found = jax.jit(lambda i, s: greedy_answers(mine, i, s, LENGTH, processors=ours(options)))(*inputs())
    out = call_generate(model, **options, num_beams=1, return_dict_in_generate=True, output_scores=True)
    np.testing.assert_array_equal(found.ids[:, 0], without_start(out.sequences))
    log_p = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True).numpy()
    ended = (out.sequences[:, 1:] == EOS).numpy().cumsum(1) > 0
    before = np.pad(ended, ((0, 0), (1, 0)))[:, :-1]  # padding has no part in the score
    np.testing.assert_allclose(found.scores[:, 0], np.where(before, 0, log_p).sum(1), rtol=1e-4, atol=1e-4)
    assert (without_start(out.sequences) != generate(model, num_beams=1)).any(1).sum() > ROWS // 2


@pytest.mark.parametrize(
    ("options", "penalty", "early_stopping"),
    [
        (COMBINED[0], 1.0, False),
        (COMBINED[1], -1.0, True),
        ({}, 2.0, "never"),
        pytest.param({}, 1.0, True, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_all_beams_token_for_token_and_their_scores(options, penalty, early_stopping):
    """Four answers of four beams, by transformers' rules, with each value of early_stopping."""
    model, mine = pair("1.0")
    out = call_generate(
        model, **options, num_beams=4, length_penalty=penalty, early_stopping=early_stopping, num_return_sequences=4,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    settings = {"beam_size": 4, "alpha": penalty, "rules": "transformers", "early_stopping": early_stopping}
    settings["processors"] = ours(options)
    found = jax.jit(lambda i, s: beam_answers(mine, i, s, LENGTH, 4, **settings))(*inputs())
    np.testing.assert_array_equal(found.ids.reshape(ROWS * 4, LENGTH), without_start(out.sequences))
    np.testing.assert_allclose(found.scores.reshape(-1), out.sequences_scores.numpy(), rtol=1e-4, atol=1e-4)


def test_options_that_are_off_add_nothing_to_the_programs():
    _, mine = pair("1.0")
    key, rows = jax.random.key(0), jnp.arange(ROWS)
    for search in (
        lambda i, s, **more: greedy(mine, i, s, 4, **more),
        lambda i, s, **more: sample(mine, i, s, 4, key, rows, **more),
        lambda i, s, **more: beam_search(mine, i, s, 4, beam_size=2, **more),
    ):
        plain, off, on = (
            str(jax.make_jaxpr(lambda i, s, more=more: search(i, s, **more))(*inputs()))  # noqa: B023
            for more in ({}, {"processors": Processors()}, {"processors": Processors(no_repeat_ngram_size=2)})
        )
        assert plain == off != on and "scatter[" not in plain and "scatter" in on
