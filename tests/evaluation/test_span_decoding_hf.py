"""Profile hf: answers out of logits against transformers' rules, and only with what is in the context."""

import math
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from transformers_qa import postprocess_qa_predictions

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
WINDOWS = SpanQa(sequence_length=32, doc_stride=8, max_query_length=7, doc_stride_mode="overlap")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load.from_file(GOLDEN / "squad_vocab.txt")


@pytest.fixture(scope="module")
def tiny(tokenizer) -> list[Example]:
    """The golden questions short enough for a window without being cut: what transformers' call leaves to its user."""
    examples = read_squad(SquadFiles(files=["squad_tiny.json"]), GOLDEN)
    return [e for e in examples if len(tokenizer.encode_batch([e.question])[0]) <= WINDOWS.max_query_length]


def in_word(text: str, place: int) -> bool:
    """Whether a place is between two Latin letters or two digits."""
    pair = text[place - 1 : place + 1] if place else ""
    latin = all(unicodedata.name(char, "").startswith("LATIN ") for char in pair)
    return len(pair) == 2 and (latin or pair.isdigit())


def transformers_windows(example: Example, tokenizer: Tokenizer) -> list[list[tuple[int, int] | None]]:
    """offset_mapping of prepare_validation_features (run_qa.py), its ends moved out of words."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, processors

    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    backend.post_processor = processors.BertProcessing(("[SEP]", tokenizer.sep_id), ("[CLS]", tokenizer.cls_id))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
    found = fast(
        example.question, example.context, truncation="only_second", max_length=32, stride=8, padding="max_length",
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    windows = []
    for n, offsets in enumerate(found["offset_mapping"]):
        window: list[tuple[int, int] | None] = []
        for (start, stop), sequence in zip(offsets, found.sequence_ids(n), strict=True):
            while in_word(example.context, start):
                start -= 1
            while in_word(example.context, stop):
                stop += 1
            window.append((start, stop) if sequence == 1 else None)
        windows.append(window)
    return windows


@pytest.mark.parametrize(("n_best", "longest", "threshold"), [(20, 30, 0.0), (5, 4, -2.0), (3, 30, 1.5)])
def test_predictions_are_those_of_transformers(tiny, tokenizer, n_best, longest, threshold):
    features = span_qa.evaluation_features(tiny, tokenizer, WINDOWS)
    random = np.random.default_rng(n_best)
    logits = random.normal(size=(2, *features.token_to_word.shape)) * 3
    logits[:, :, 0] += 2.0
    options = {"max_answer_length": longest, "null_score_diff_threshold": threshold}
    for version_2 in (False, True):
        predictions, nbest, odds = span_decoding.predict_answers(
            tiny, features, *logits, n_best=n_best, version_2=version_2, **options
        )
        compared = 0
        for number, example in enumerate(tiny):
            rows = np.flatnonzero(features.example_index == number)
            windows = [
                {"offset_mapping": offsets, "token_is_max_context": features.max_context[row]}
                for row, offsets in zip(rows, transformers_windows(example, tokenizer), strict=True)
            ]
            try:
                want, entries, difference = postprocess_qa_predictions(
                    example.context, windows, *logits[:, rows], version_2=version_2, n_best_size=n_best, **options
                )
            except (ValueError, IndexError, StopIteration):  # none of the n best fit: the script has no answer
                assert predictions[example.id] or version_2
                continue
            compared += 1
            assert predictions[example.id] == want and odds.get(example.id) == difference
            assert [entry["text"] for entry in nbest[example.id]] == [entry["text"] for entry in entries]
            for key in ("probability", "start_logit", "end_logit"):
                found, wanted = ([entry[key] for entry in each] for each in (nbest[example.id], entries))
                np.testing.assert_allclose(found, wanted, rtol=1e-12)
        assert compared > len(tiny) / 2


def one(context: str, tokenizer: Tokenizer, length: int = 48) -> tuple[list[Example], span_qa.Features]:
    example = Example("a", "stone?", context, [], is_impossible=True)
    return [example], span_qa.evaluation_features([example], tokenizer, SpanQa(sequence_length=length))


def test_nothing_but_the_context_competes(tokenizer):
    """[CLS], the question, [SEP] and padding have the highest logits of all."""
    examples, features = one("the stone wall", tokenizer)
    inside = features.token_to_word >= 0
    start, end = np.where(inside, 0.0, 5.0), np.where(inside, 0.0, 5.0)
    start[inside], end[inside] = np.arange(inside.sum()), np.arange(inside.sum())
    for n_best in (1, 3, 20):
        predictions, nbest, _ = span_decoding.predict_answers(examples, features, start, end, n_best=n_best)
        assert predictions["a"] == "wall"
        assert all(entry["text"] in "the stone wall" for entry in nbest["a"])
        assert math.isclose(sum(entry["probability"] for entry in nbest["a"]), 1.0)
        best_score = 2 * (inside.sum() - 1)
        assert nbest["a"][0]["start_logit"] + nbest["a"][0]["end_logit"] == best_score


def test_the_best_span_is_searched_where_the_n_best_do_not_fit(tokenizer):
    examples, features = one("the stone wall is old", tokenizer)
    places = np.flatnonzero(features.token_to_word[0] >= 0)
    start, end = np.zeros((2, *features.token_to_word.shape))
    start[0, places[-1]], end[0, places[0]] = 9.0, 8.0  # the best end is in front of the best start
    predictions, nbest, _ = span_decoding.predict_answers(examples, features, start, end, n_best=1)
    words = examples[0].context.split()
    assert predictions["a"] == words[-1] and nbest["a"][0]["start_logit"] == 9.0 and len(nbest["a"]) == 1
    start[0, places[-1]], end[0, places[-1]] = 9.0, -9.0
    predictions, _, odds = span_decoding.predict_answers(examples, features, start, end, n_best=1, version_2=True)
    assert predictions["a"] == "the" and odds["a"] == -8.0  # [CLS] has logits of 0


def test_a_context_without_a_piece_has_no_answer(tokenizer):
    examples, features = one("\x01\x02", tokenizer)
    nothing = np.zeros(features.token_to_word.shape)
    assert span_decoding.predict_answers(examples, features, nothing, nothing)[:2] == ({"a": ""}, {"a": []})
    predictions, nbest, odds = span_decoding.predict_answers(examples, features, nothing, nothing, version_2=True)
    assert (predictions, odds) == ({"a": ""}, {"a": span_decoding.NO_SPAN_NULL_ODDS}) and nbest["a"][0]["text"] == ""
    assert squad.score(examples, predictions)["exact"] == 100


def test_a_text_of_two_windows_is_listed_once(tokenizer):
    examples, features = one("stone wall " * 20, tokenizer, length=32)
    assert len(features) > 1
    random = np.random.default_rng(0)
    start, end = random.normal(size=(2, *features.token_to_word.shape))
    _, nbest, _ = span_decoding.predict_answers(examples, features, start, end)
    texts = [entry["text"] for entry in nbest["a"]]
    assert len(texts) == len(set(texts)) and "" not in texts
