"""Entities of texts as transformers' token-classification pipeline finds them, and long texts without a loss."""

import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import bertjax  # noqa: E402
from bertjax.errors import UserError  # noqa: E402
from bertjax.evaluation.inference.tag_decoding import TaggedPiece, decode_tags  # noqa: E402
from bertjax.evaluation.predictors.tags import AGGREGATIONS, Tagger  # noqa: E402

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *LETTERS,
    *(f"##{c}" for c in LETTERS),
    *".,!?()-'",
    "the",
    "##er",
]
TEXTS = [
    "Angela Merkel visited the Rockefeller Center in New York, didn't she?", "Zürich! (Tokyo) is 東京 - a town.", "x",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("hf")
    (out / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    transformers.BertTokenizer.from_pretrained(out).save_pretrained(out)
    config = transformers.DistilBertConfig(
        vocab_size=len(PIECES), dim=24, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=96,
        initializer_range=0.7, id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)},
    )  # fmt: skip
    torch.manual_seed(1)
    transformers.DistilBertForTokenClassification(config).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def model(folder) -> bertjax.Model:
    return bertjax.open(folder, device="cpu")


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_entities_are_those_of_the_pipeline(folder, model, aggregation):
    tokenizer = transformers.BertTokenizer.from_pretrained(folder, model_max_length=96)
    theirs = transformers.DistilBertForTokenClassification.from_pretrained(folder).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = transformers.pipeline(
            "token-classification", model=theirs, tokenizer=tokenizer, aggregation_strategy=aggregation
        )  # fmt: skip
        expected = [pipeline(text) for text in TEXTS]
    assert sum(map(len, expected)) > 4
    name = "entity" if aggregation == "none" else "entity_group"
    for text, found, wanted in zip(TEXTS, model.tag(TEXTS, aggregation=aggregation), expected, strict=True):
        assert found["text"] == text
        same = [(one["label"], one["start"], one["end"]) for one in found["entities"]]
        assert same == [(one[name], one["start"], one["end"]) for one in wanted]
        assert [one["text"] for one in found["entities"]] == [text[a:b] for _, a, b in same]
        scores = [float(one["score"]) for one in wanted]
        np.testing.assert_allclose([one["score"] for one in found["entities"]], scores, atol=1e-4)
        if aggregation == "none":
            pieces = [(one["token"], one["index"]) for one in found["entities"]]
            assert pieces == [(one["word"], one["index"]) for one in wanted]


def test_long_texts_lose_no_word(model):
    """A text of many windows: every word of it has a label, and those far from the edges of the windows are the same as
    in the middle of one big window."""
    text = " ".join(f"the tower of {a}{b} is old." for a in "abcdefgh" for b in "abcde")
    assert len(model.tokenizer.encode_batch([text])[0]) > 3 * 96
    found = model.tag(text, aggregation="first")["entities"]
    assert max(one["end"] for one in found) > len(text) - 60 and min(one["start"] for one in found) < 60
    tagger = Tagger(model.restored)
    ((words),) = tagger.tag_text_words([text])
    assert words["words"] == text.replace(".", " .").split() and len(words["labels"]) == len(words["words"])
    assert [one["labels"] for one in tagger.tag_words([words["words"]])] == [words["labels"]]


def pieces(text: str, labels: list[str], names: list[str]) -> list[TaggedPiece]:
    """A piece for each word of a text, surely of its label."""
    found, start = [], 0
    for number, (word, label) in enumerate(zip(text.split(), labels, strict=True)):
        start = text.index(word, start)
        sure = np.eye(len(names), dtype=np.float32)[names.index(label)]
        found.append(TaggedPiece(word, number + 1, start, start + len(word), sure, False))
        start += len(word)
    return found


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["B-A", "E-A", "S-A", "O", "S-B"], [("A", "a b"), ("A", "c"), ("B", "e")]),  # IOBES
        (["B-A", "L-A", "U-A", "O", "U-B"], [("A", "a b"), ("A", "c"), ("B", "e")]),  # BILOU
        (["I-A", "I-A", "B-A", "O", "I-B"], [("A", "a b"), ("A", "c"), ("B", "e")]),  # IOB1
        (["N", "N", "V", "N", "V"], [("N", "a"), ("N", "b"), ("V", "c"), ("N", "d"), ("V", "e")]),  # no entities
    ],
)
def test_prefixes_of_all_schemes(labels, expected):
    text = "a b c d e"
    found = decode_tags(pieces(text, labels, names := sorted(set(labels))), names, "first")
    assert [(one.label, text[one.start : one.end]) for one in found] == expected


def test_mistakes_are_one_line(model):
    with pytest.raises(
        UserError, match=r"aggregation: must be one of none, simple, first, average, max \(got 'last'\)"
    ):
        model.tag("a", aggregation="last")
    with pytest.raises(UserError, match="words of sentence 1: item 0 is empty"):
        model.tag_words([["a"], [""]])
    with pytest.raises(UserError, match="has no 'classifier' head"):
        model.classify("a")
