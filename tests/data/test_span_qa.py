"""Windows against run_squad.py of google-research/bert (golden), transformers' overflow, and plain re-statements."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example as explicit
from hypothesis import given, settings
from hypothesis import strategies as st
from preparing import rows_and_counts

from bertjax.config.schema.data import SpanQa
from bertjax.config.schema.sources import SquadFiles
from bertjax.data.preprocess.span_qa import (
    _best_window,
    _windows,
    evaluation_features,
    row_dtype,
    training_features,
)
from bertjax.data.sources.squad import Example, read_squad
from bertjax.data.tokenizers import load
from bertjax.data.tokenizers.load import Tokenizer
from bertjax.errors import UserError
from bertjax.verify import runner

GOLDEN = Path(str(runner.GOLDENS))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load.from_file(GOLDEN / "squad_vocab.txt")


@pytest.fixture(scope="module")
def tiny() -> list[Example]:
    return read_squad(SquadFiles(kind="squad", files=["squad_tiny.json"]), GOLDEN)


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads((GOLDEN / "squad_features.json").read_text(encoding="utf-8"))


def options(golden: dict) -> SpanQa:
    names = ("sequence_length", "doc_stride", "max_query_length")
    return SpanQa(profile="bert", **{name: golden[name] for name in names})


def test_training_rows_are_those_of_run_squad(tiny, tokenizer, golden, caplog):
    with caplog.at_level(logging.INFO):
        rows, counts = rows_and_counts(tiny, tokenizer, options(golden))
    assert (counts["questions"]["texts"], counts["questions"]["left_out"]) == (22, 1) and "q0lost" in caplog.text
    assert rows.dtype == row_dtype(golden["sequence_length"])
    assert len(rows) == len(golden["training"])
    for row, want in zip(rows, golden["training"], strict=True):
        used = len(want["ids"])
        assert row["input_ids"].tolist() == want["ids"] + [0] * (golden["sequence_length"] - used)
        assert "".join(map(str, row["token_type_ids"])) == want["types"]
        np.testing.assert_array_equal(row["segment_ids"], np.arange(golden["sequence_length"]) < used)
        np.testing.assert_array_equal(row["positions"][:used], np.arange(used))
        assert not row["positions"][used:].any()
        assert (row["start_positions"][0], row["end_positions"][0]) == (want["start"], want["end"])
        assert row["span_weights"][0] == 1.0 and row["cls_positions"][0] == 0


def test_evaluation_windows_are_those_of_run_squad(tiny, tokenizer, golden):
    features = evaluation_features(tiny, tokenizer, options(golden))
    assert len(features) == len(golden["evaluation"])
    for n, want in enumerate(golden["evaluation"]):
        assert tiny[features.example_index[n]].id == want["id"]
        inside = np.flatnonzero(features.token_to_word[n] >= 0)
        assert inside[0] == want["first"]
        assert features.token_to_word[n, inside].tolist() == want["words"]
        assert "".join(str(int(flag)) for flag in features.max_context[n, inside]) == want["max_context"]
        assert not np.delete(features.max_context[n], inside).any()
    words = {example.id: words for example, words in zip(tiny, features.words, strict=True)}
    assert all(words[key] == value for key, value in golden["words"].items())


def test_a_padding_id_other_than_zero_is_used(tiny, tmp_path, golden):
    lines = (GOLDEN / "squad_vocab.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "vocab.txt").write_text("\n".join([*lines[1:], lines[0]]) + "\n", encoding="utf-8")
    moved = load.from_file(tmp_path / "vocab.txt")
    assert moved.pad_id == len(lines) - 1
    rows = training_features(tiny, moved, options(golden))
    np.testing.assert_array_equal(rows["input_ids"] == moved.pad_id, rows["segment_ids"] == 0)
    features = evaluation_features(tiny, moved, options(golden))
    np.testing.assert_array_equal(features.inputs["input_ids"] == moved.pad_id, features.inputs["segment_ids"] == 0)


def test_slices_of_the_examples_give_the_same_rows(tiny, tokenizer, golden):
    whole = training_features(tiny, tokenizer, options(golden))
    parts = [training_features(tiny[i : i + 5], tokenizer, options(golden)) for i in range(0, len(tiny), 5)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert len(training_features([], tokenizer, options(golden))) == 0
    assert len(evaluation_features([], tokenizer, options(golden))) == 0


# ---- windows --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 300), st.integers(1, 60), st.integers(1, 80))
def test_windows_follow_the_reference_rule(tokens, room, step):
    windows = list(_windows(tokens, room, step))
    covered = {piece for start, length in windows for piece in range(start, start + length)}
    assert covered == set(range(tokens))
    for n, (start, length) in enumerate(windows):
        assert start == n * min(step, room)  # a step longer than the window would leave a gap
        assert length == min(room, tokens - start)
        assert (start + length == tokens) == (n == len(windows) - 1)


@settings(deadline=None)
@given(st.integers(1, 700), st.integers(20, 400), st.integers(20, 200))
@explicit(tokens=381, room=380, step=128)  # the last window is 127 pieces shorter, which decides about piece 254
def test_maximum_context_is_the_window_that_sees_most_around(tokens, room, step):
    windows = list(_windows(tokens, room, step))
    best = _best_window(windows, tokens)
    for piece in range(tokens):
        scores = {
            n: min(piece - start, start + length - 1 - piece) + 0.01 * length
            for n, (start, length) in enumerate(windows)
            if start <= piece < start + length
        }
        assert best[piece] == min(scores, key=lambda n: (-scores[n], n))


def test_stride_modes(tokenizer):
    text = " ".join(["stone"] * 50)
    pieces = len(tokenizer.encode_batch(["stone"])[0]) * 50
    example = Example("a", "wall", text, [], is_impossible=True)
    query = len(tokenizer.encode_batch(["wall"])[0])
    room = 32 - query - 3
    step = evaluation_features([example], tokenizer, SpanQa(sequence_length=32, doc_stride=10))
    overlap = evaluation_features(
        [example], tokenizer, SpanQa(sequence_length=32, doc_stride=10, doc_stride_mode="overlap")
    )
    assert np.unique(np.diff(step.doc_start)).tolist() == [10]
    assert np.unique(np.diff(overlap.doc_start)).tolist() == [room - 10]
    assert len(step) == 1 + -(-(pieces - room) // 10) and len(overlap) == 1 + -(-(pieces - room) // (room - 10))


def test_a_question_without_room_for_its_document_is_an_error(tokenizer):
    example = Example("long one", "wall " * 40, "stone", [], is_impossible=True)
    with pytest.raises(UserError, match="'long one' takes 29 of 32"):
        evaluation_features([example], tokenizer, SpanQa(sequence_length=32, max_query_length=29))
    features = evaluation_features([example], tokenizer, SpanQa(sequence_length=32, max_query_length=24))
    assert features.token_to_word[0].tolist().index(0) == 26  # [CLS], 24 pieces, [SEP]
    with pytest.raises(UserError, match="doc_stride 5"):
        narrow = SpanQa(sequence_length=32, max_query_length=24, doc_stride=5, doc_stride_mode="overlap")
        training_features([example], tokenizer, narrow)


def test_questions_with_one_id_are_refused_for_evaluation(tokenizer):
    twice = [Example("a", "q", "stone", [], True), Example("a", "r", "stone", [], True)]
    with pytest.raises(UserError, match="'a' is there twice"):
        evaluation_features(twice, tokenizer, SpanQa())


# ---- answers --------------------------------------------------------------------------------------------------------

WORDS = SpanQa(profile="bert", sequence_length=256)
TEXTS = st.text(st.sampled_from("ab1 (.'-\u202f\u00a0\n\u00e9\u200b"), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(TEXTS.filter(lambda t: t.strip()), st.data())
def test_the_answer_is_the_first_exact_run_of_pieces(tokenizer, context, data):
    start = data.draw(st.integers(0, len(context) - 1))
    text = context[start : data.draw(st.integers(start + 1, len(context)))]
    rows = training_features([Example("a", "q", context, [(text, start)])], tokenizer, WORDS)
    # words, the characters they take and their pieces, told character by character
    words, owner = [], []
    fresh = True
    for char in context:
        if char in " \t\r\n\u202f":
            fresh = True
        else:
            words = [*words, char] if fresh else [*words[:-1], words[-1] + char]
            fresh = False
        owner.append(len(words) - 1)
    pieces = [(w, piece) for w, word in enumerate(words) for piece in tokenizer.encode_batch([word])[0]]
    first, last = owner[start], owner[start + len(text) - 1]
    spans = [n for n, (w, _) in enumerate(pieces) if first <= w <= last]
    lost = first < 0 or " ".join(text.split()) not in " ".join(words[first : last + 1])
    if lost or not spans:
        assert len(rows) == 0
        return
    ids, wanted = [piece for _, piece in pieces], tokenizer.encode_batch([text])[0]
    matches = [(a, b) for a in spans for b in reversed(spans) if a <= b and ids[a : b + 1] == wanted]
    a, b = matches[0] if matches else (spans[0], spans[-1])
    offset = 2 + len(tokenizer.encode_batch(["q"])[0])
    assert rows["input_ids"][0, offset : offset + len(ids)].tolist() == ids
    assert (rows["start_positions"][0, 0], rows["end_positions"][0, 0]) == (a + offset, b + offset)


def test_windows_without_the_answer_and_unanswerable_questions_have_cls(tokenizer):
    context = " ".join(["stone"] * 40 + ["wall"])
    examples = [
        Example("last", "wall", context, [("wall", len(context) - 4)]),
        Example("none", "wall", context, [], is_impossible=True),
        Example("wide", "wall", context, [(context, 0)]),  # longer than any window
    ]
    rows = training_features(examples, tokenizer, SpanQa(sequence_length=32, doc_stride=16))
    count = len(rows) // 3
    spans = np.concatenate([rows["start_positions"], rows["end_positions"]], axis=1).reshape(3, count, 2)
    assert not spans[0, :-1].any() and spans[0, -1, 0] > 0
    wall = tokenizer.encode_batch(["wall"])[0]
    assert rows["input_ids"][count - 1, spans[0, -1, 0] : spans[0, -1, 1] + 1].tolist() == wall
    assert not spans[1:].any()


# ---- independent implementations and real data ----------------------------------------------------------------------


def test_overlap_windows_are_those_of_transformers(tiny, tokenizer):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, processors

    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    backend.post_processor = processors.BertProcessing(("[SEP]", tokenizer.sep_id), ("[CLS]", tokenizer.cls_id))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
    for length, stride in ((48, 8), (64, 20), (384, 128)):
        wanted = fast(
            [e.question for e in tiny], [e.context for e in tiny], truncation="only_second", max_length=length,
            stride=stride, return_overflowing_tokens=True, return_token_type_ids=True, padding="max_length",
        )  # fmt: skip
        span_qa = SpanQa(sequence_length=length, doc_stride=stride, doc_stride_mode="overlap")
        features = evaluation_features(tiny, tokenizer, span_qa)
        np.testing.assert_array_equal(features.inputs["input_ids"], wanted["input_ids"])
        np.testing.assert_array_equal(features.inputs["token_type_ids"], wanted["token_type_ids"])
        np.testing.assert_array_equal(features.inputs["segment_ids"], wanted["attention_mask"])
        np.testing.assert_array_equal(features.example_index, wanted["overflow_to_sample_mapping"])


@pytest.mark.slow
def test_squad_train_gives_the_rows_of_run_squad(shared_data, caplog):
    """Figures of run_squad.py (bert-tensorflow 1.0.1) on the same file: rows, [CLS] rows, sums of the positions."""
    examples = read_squad(SquadFiles(kind="squad", files=["squad/train-v1.1.json.gz"]), shared_data)
    tokenizer = load.from_file(shared_data / "vocab" / "bert-base-uncased-vocab.txt")
    rows = training_features(examples, tokenizer, SpanQa(profile="bert"))
    assert len(examples) == 87_599 and "skipped" not in caplog.text
    starts, ends = rows["start_positions"], rows["end_positions"]
    assert (len(rows), int((starts == 0).sum())) == (88_641, 636)
    assert (int(starts.sum()), int(ends.sum())) == (7_060_108, 7_344_395)


def test_real_answers_are_where_the_training_rows_say(shared_data):
    source = SquadFiles(kind="squad", files=["squad/xquad.en.first-half.json.gz"])
    examples = read_squad(source, shared_data)
    tokenizer = load.from_file(shared_data / "vocab" / "bert-base-uncased-vocab.txt")
    span_qa = SpanQa(sequence_length=512, doc_stride=256)
    rows = training_features(examples, tokenizer, span_qa)
    owners = evaluation_features(examples, tokenizer, span_qa).example_index  # nothing is skipped: the same windows
    answered = np.flatnonzero(rows["start_positions"][:, 0])
    assert np.unique(owners[answered]).tolist() == list(range(len(examples)))
    wanted = tokenizer.encode_batch([e.answers[0][0] for e in examples])
    spans = [rows[n] for n in answered]
    found = [row["input_ids"][row["start_positions"][0] : row["end_positions"][0] + 1].tolist() for row in spans]
    exact = sum(ids == wanted[owners[n]] for ids, n in zip(found, answered, strict=True))
    assert exact / len(found) > 0.99  # the rest are answers inside a word
