"""Answers out of logits against write_predictions of run_squad.py (golden) and a plain re-statement."""

import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from span_oracle import oracle

from bertjax.config.schema.data import SpanQa
from bertjax.config.schema.sources import SquadFiles
from bertjax.data.preprocess import span_qa
from bertjax.data.sources.squad import Example, read_squad
from bertjax.data.tokenizers import load
from bertjax.data.tokenizers.load import Tokenizer
from bertjax.evaluation.inference import span_decoding
from bertjax.evaluation.metrics import squad
from bertjax.verify import runner

GOLDEN = Path(str(runner.GOLDENS))
RUNS = json.loads((GOLDEN / "squad_predictions.json").read_text(encoding="utf-8"))["runs"]
TEXTS = json.loads((GOLDEN / "squad_texts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load.from_file(GOLDEN / "squad_vocab.txt")


@pytest.fixture(scope="module")
def tiny() -> list[Example]:
    return read_squad(SquadFiles(kind="squad", files=["squad_tiny.json"]), GOLDEN)


@pytest.fixture(scope="module")
def features(tiny, tokenizer) -> span_qa.Features:
    return span_qa.evaluation_features(
        tiny, tokenizer, SpanQa(profile="bert", sequence_length=32, doc_stride=8, max_query_length=7)
    )


def logits(run: dict, shape: tuple[int, int]) -> list[np.ndarray]:
    """The numbers the reference was given: see `source` in the golden file."""
    random, made = np.random.RandomState(run["seed"]), []
    for _ in range(2):
        values = random.randn(*shape) * 3
        if run["steps"]:
            values = np.round(values * run["steps"]) / run["steps"]
        values[:, 0] += run["null_boost"]
        made.append(values.astype(np.float32))
    return made


@pytest.mark.parametrize("run", RUNS, ids=lambda run: str(run["seed"]))
def test_predictions_are_those_of_run_squad(run, tiny, features):
    predictions, nbest, odds = span_decoding.predict_answers(
        tiny, features, *logits(run, features.token_to_word.shape), n_best=run["n_best"],
        max_answer_length=run["max_answer_length"], null_score_diff_threshold=run["threshold"],
        version_2=run["version_2"],
    )  # fmt: skip
    stopped = {key for key, text in run["predictions"].items() if text is None}
    assert predictions == {key: text or "" for key, text in run["predictions"].items()}
    assert {key: value for key, value in odds.items() if key not in stopped} == run["null_odds"]
    assert all(odds[key] == span_decoding.NO_SPAN_NULL_ODDS and nbest[key][0]["text"] == "" for key in stopped)
    assert {key: len(nbest[key]) for key in run["entries"]} == run["entries"]
    for key, want in run["nbest"].items():
        found = [list(entry.values()) for entry in nbest[key][: len(want)]]
        assert [(f[0], f[2], f[3]) for f in found] == [(w[0], w[2], w[3]) for w in want]
        np.testing.assert_allclose([f[1] for f in found], [w[1] for w in want], atol=1e-11)
        assert math.isclose(sum(entry["probability"] for entry in nbest[key]), 1.0)
    json.dumps([predictions, nbest, odds], allow_nan=False)


@given(st.lists(st.text(min_size=1, max_size=8).filter(lambda t: " " not in t), max_size=5), st.booleans())
def test_basic_tokens_of_words_are_those_of_the_joined_text(words, lowercase):
    apart = " ".join(filter(None, (span_decoding.basic_tokens(word, lowercase) for word in words)))
    assert apart == span_decoding.basic_tokens(" ".join(words), lowercase)


# ---- a re-statement for any logits ----------------------------------------------------------------------------------

QUESTION, WORDS = 3, 9  # a window: [CLS] q q [SEP] then the document's pieces, [SEP]; S = 16


def toy(windows: int, max_context: np.ndarray) -> span_qa.Features:
    """One example over the words w0 w1 ..; every window shows WORDS of them, `windows` apart."""
    ids, word = np.zeros((windows, 16), np.int32), np.full((windows, 16), -1, np.int32)
    for n in range(windows):
        word[n, QUESTION + 1 : QUESTION + 1 + WORDS] = np.arange(WORDS) + n
        ids[n, QUESTION + 1 : QUESTION + 1 + WORDS] = np.arange(WORDS) + n
    words = [f"w{n}" for n in range(WORDS + windows)]
    return span_qa.Features(
        inputs={"input_ids": ids}, example_index=np.zeros(windows, np.int32), doc_start=np.arange(windows),
        token_to_word=word, max_context=max_context & (word >= 0), words=[words], pieces=words, lowercase=True,
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.sampled_from([-2.0, 0.0, 1.0]))
def test_predictions_of_any_logits(data, windows, n_best, longest, threshold):
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    features = toy(windows, random.random((windows, 16)) < 0.8)
    start, end = random.integers(-3, 4, (2, windows, 16)).astype(np.float32)  # whole numbers: many equal scores
    example = Example("a", "q", " ".join(features.words[0]), [("w0", 0)])

    def best(row):
        return sorted(range(16), key=lambda i: (-row[i], i))[:n_best]

    spans = [
        (float(start[n, s] + end[n, e]), f"{' '.join(f'w{w}' for w in range(word[s], word[e] + 1))}")
        for n, word in enumerate(features.token_to_word)
        for s in best(start[n])
        for e in best(end[n])
        if word[s] >= 0 and word[e] >= 0 and features.max_context[n, s] and s <= e < s + longest
    ]
    null = min(float(start[n, 0] + end[n, 0]) for n in range(windows))
    for version_2 in (False, True):
        ranked = sorted([*spans, (null, "")] if version_2 else spans, key=lambda span: -span[0])
        entries = list(dict.fromkeys(text for _, text in ranked))[:n_best]
        if version_2 and "" not in entries:
            entries.append("")
        predictions, nbest, odds = span_decoding.predict_answers(
            [example], features, start, end, n_best=n_best, max_answer_length=longest,
            null_score_diff_threshold=threshold, version_2=version_2,
        )  # fmt: skip
        assert [entry["text"] for entry in nbest["a"]] == (entries or ["empty"])
        if not version_2:
            assert odds == {} and predictions["a"] == (entries or ["empty"])[0]
            continue
        score = dict(reversed([(text, value) for value, text in ranked]))  # the best of each text
        answer = next((text for text in entries if text), None)
        assert odds["a"] == (span_decoding.NO_SPAN_NULL_ODDS if answer is None else null - score[answer])
        assert predictions["a"] == ("" if answer is None or odds["a"] > threshold else answer)


def test_the_threshold_is_strict():
    features = toy(1, np.ones((1, 16), bool))
    start, end = np.zeros((2, 1, 16), np.float32)
    start[0, 0] = start[0, 5] = 4.0  # null odds 0
    example = Example("a", "q", "w", [("w", 0)])
    for threshold, want in ((0.0, "w1"), (-0.001, "")):
        got, _, odds = span_decoding.predict_answers(
            [example], features, start, end, null_score_diff_threshold=threshold, version_2=True
        )
        assert odds == {"a": 0.0} and got == {"a": want}


def test_an_example_without_windows(tokenizer):
    example = Example("a", "q", "\u200b", [], is_impossible=True)  # a word, but no pieces
    features = span_qa.evaluation_features([example], tokenizer, SpanQa(profile="bert", sequence_length=32))
    assert len(features) == 0
    nothing = np.zeros((0, 32), np.float32)
    assert span_decoding.predict_answers([example], features, nothing, nothing)[0] == {"a": "empty"}
    predictions, nbest, odds = span_decoding.predict_answers([example], features, nothing, nothing, version_2=True)
    assert (predictions, odds) == ({"a": ""}, {"a": span_decoding.NO_SPAN_NULL_ODDS})
    assert nbest["a"] == [{"text": "", "probability": 1.0, "start_logit": 0.0, "end_logit": 0.0}]


def test_logits_of_another_shape_are_refused(tiny, features):
    with pytest.raises(ValueError, match="for windows of shape"):
        span_decoding.predict_answers(tiny, features, np.zeros((1, 32)), np.zeros((1, 32)))


# ---- a model that knows the answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name, at_least", [("dev-v1.1", 99.6), ("dev-v2.0", 99.8)])
def test_a_model_that_knows_the_answers_gets_them(shared_data, name, at_least):
    """The rest: answers inside a word ('8' of '20-18') and annotated answers longer than 30 pieces."""
    examples = read_squad(SquadFiles(kind="squad", files=[f"squad/{name}.first-half.json.gz"]), shared_data)
    tokenizer = load.from_file(shared_data / "vocab" / "bert-base-uncased-vocab.txt")
    version_2 = name == "dev-v2.0"
    predictions, _, odds = span_decoding.predict_answers(
        examples, *oracle(examples, tokenizer, SpanQa()), version_2=version_2
    )
    scores = squad.score(examples, predictions, odds if version_2 else None)
    assert at_least <= scores["exact"] <= scores["f1"] < 100.0
    if version_2:
        assert scores["NoAns_exact"] == 100.0 and scores["NoAns_total"] == 2916
        assert scores["best_exact"] >= scores["exact"]


# ---- parts of the windows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["bert", "hf"])
@pytest.mark.parametrize("most", [1, 2, 5, 1000])
def test_parts_of_the_windows_give_the_same_answers(tiny, tokenizer, profile, most):
    options = SpanQa(profile=profile, sequence_length=24, doc_stride=4, max_query_length=7)
    whole = span_qa.evaluation_features(tiny, tokenizer, options)
    rng = np.random.default_rng(most)
    start, end = (rng.normal(size=whole.token_to_word.shape).round(1).astype(np.float32) for _ in range(2))
    parts, first = [], 0
    for features in span_qa.feature_parts(tiny, tokenizer, options, most):
        assert len(features) <= most
        rows = slice(first, first + len(features))
        for name in ("example_index", "doc_start", "token_to_word", "max_context"):
            np.testing.assert_array_equal(getattr(features, name), getattr(whole, name)[rows])
        parts.append((features, start[rows], end[rows]))
        first += len(features)
    assert first == len(whole) > 10
    for version_2 in (False, True):
        how = {"n_best": 5, "max_answer_length": 6, "null_score_diff_threshold": 0.0, "version_2": version_2}
        found = span_decoding.predict_from_parts(tiny, parts, **how)
        assert found == span_decoding.predict_answers(tiny, whole, start, end, **how)


def test_memory_of_a_long_context_grows_with_its_length_alone(tokenizer):
    """Windows that begin at every piece (stride 1), whose cells outnumber the pieces 64 times."""
    options, peaks = SpanQa(profile="hf", sequence_length=64, doc_stride=1, max_query_length=7), []
    for words in (2000, 4000, 8000):
        example = Example("0", "who", "a b " * (words // 2), [])
        tracemalloc.start()
        parts = span_qa.feature_parts([example], tokenizer, options, 256)
        scored = ((one, *[np.zeros(one.token_to_word.shape, np.float32)] * 2) for one in parts)
        span_decoding.predict_from_parts(
            [example], scored, n_best=3, max_answer_length=5, null_score_diff_threshold=0.0, version_2=True
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 2.2 * peaks[1] and peaks[2] < 8_000_000 < 8000 * 64 * 45  # the cells of all windows
