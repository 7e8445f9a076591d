"""Scores of entities: seqeval, the rules of conlleval.pl, and their examples."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.evaluation.metrics.entities import (
    SCORES,
    entity_scores,
    find_entities,
    foreign_prefix,
    has_entities,
    word_scores,
)
from bertjax.report.classes import class_scores


def conlleval(tags: list[str]) -> list[tuple[str, int, int]]:
    """Chunks by startOfChunk and endOfChunk of conlleval.pl, without its brackets."""
    found, begin = [], 0
    before, kind_before = "O", ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        end = (before, prefix) in {("B", "B"), ("B", "O"), ("I", "B"), ("I", "O"), ("E", "E"), ("E", "I"), ("E", "O")}
        end = end or (before != "O" and kind_before != kind) or (before == "E" and prefix == "B")
        start = (before, prefix) in {("B", "B"), ("I", "B"), ("O", "B"), ("O", "I"), ("E", "E"), ("E", "I"), ("O", "E")}
        start = start or (prefix != "O" and kind_before != kind) or (before == "E" and prefix == "B")
        if end:
            found.append((kind_before, begin, place - 1))
        begin = place if start else begin
        before, kind_before = prefix, kind
    return found


TYPES = ["PER", "B-x", "LOC"]


def tags(prefixes: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(["O", *(f"{p}-{t}" for p in prefixes for t in TYPES)]), min_size=1, max_size=9)


@given(tags("BI") | tags("IE") | tags("BIE"))
@settings(max_examples=200, deadline=None)
def test_entities_are_those_of_conlleval(sentence):
    assert find_entities(sentence) == conlleval(sentence)


def test_the_example_of_seqeval():
    gold = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    guess = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    scores, details = entity_scores(gold, guess)
    assert scores == {"precision": 50.0, "recall": 50.0, "f1": 50.0, "accuracy": 80.0}  # its README
    rows = {row["name"]: row for row in class_scores(details["classes"])["rows"]}
    assert (rows["MISC"]["f1"], rows["PER"]["f1"], rows["PER"]["support"]) == (0.0, 1.0, 1)
    assert details["words"] == {"names": ["O", "MISC", "PER"], "confusion": [[4, 1, 0], [0, 3, 0], [0, 0, 2]]}


@pytest.mark.parametrize(
    ("scheme", "sentence", "expected"),
    [
        (None, ["I-A", "I-A", "B-A", "I-B"], [("A", 0, 1), ("A", 2, 2), ("B", 3, 3)]),  # IOB1
        ("IOB2", ["I-A", "I-A", "B-A", "I-A", "I-B"], [("A", 2, 3)]),
        ("IOE2", ["I-A", "E-A", "I-A", "O", "E-B"], [("A", 0, 1), ("B", 4, 4)]),
        ("IOBES", ["B-A", "I-A", "E-A", "S-A", "B-A", "O"], [("A", 0, 2), ("A", 3, 3)]),
        ("BILOU", ["B-A", "L-A", "U-B", "I-B"], [("A", 0, 1), ("B", 2, 2)]),
        (None, ["B-A", "L-A", "U-A", "U-A"], [("A", 0, 1), ("A", 2, 2), ("A", 3, 3)]),
        (None, ["PER", "PER", "O", "LOC"], [("PER", 0, 1), ("LOC", 3, 3)]),
    ],
)
def test_schemes(scheme, sentence, expected):
    assert find_entities(sentence, scheme) == expected


STRICT = {"IOB2": "BI", "IOE2": "IE", "IOBES": "BIES", "BILOU": "BILU", None: "BIES"}


@pytest.mark.parametrize("scheme", STRICT)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_scores_are_those_of_seqeval(scheme, data):
    metrics, schemes = pytest.importorskip("seqeval.metrics"), pytest.importorskip("seqeval.scheme")
    some = st.sampled_from(["O", *(f"{p}-{t}" for p in STRICT[scheme] for t in TYPES)])
    word = st.tuples(some, st.none() | some)  # the label, another prediction
    sentences = data.draw(st.lists(st.lists(word, min_size=1, max_size=9), min_size=1, max_size=4))
    gold = [[tag for tag, _ in sentence] for sentence in sentences]
    guess = [[other or tag for tag, other in sentence] for sentence in sentences]
    mode = {"mode": "strict", "scheme": getattr(schemes, scheme)} if scheme else {}
    scores, _ = entity_scores(gold, guess, scheme)
    expected = [getattr(metrics, f"{name}_score")(gold, guess, zero_division=0, **mode) for name in SCORES[:3]]
    expected.append(metrics.accuracy_score(gold, guess))
    assert [scores[name] for name in SCORES] == pytest.approx([100 * value for value in expected])


def test_labels_with_and_without_entities():
    assert has_entities(["O", "B-PER"]) and has_entities(["PER", "O"]) and has_entities(["S-X", "E-X"])
    assert not has_entities(["NOUN", "VERB", "PUNCT"])
    assert foreign_prefix(["O", "B-A", "E-A"], "IOB2") == "E-A" and foreign_prefix(["O", "U-A"], "BILOU") is None


def test_parts_of_speech_are_scored_word_by_word():
    sklearn = pytest.importorskip("sklearn.metrics")
    gold = [["DET", "NOUN", "VERB"], ["NOUN", "NOUN"]]
    guess = [["DET", "VERB", "VERB"], ["NOUN", "DET"]]
    scores, details = word_scores(gold, guess)
    flat = [sum(one, []) for one in (gold, guess)]
    names = details["classes"]["names"]
    assert scores == {"accuracy": 100 * sklearn.accuracy_score(*flat)}
    assert details["classes"]["confusion"] == sklearn.confusion_matrix(*flat, labels=names).tolist()
    f1 = [row["f1"] for row in class_scores(details["classes"])["rows"]]
    assert f1 == pytest.approx(sklearn.f1_score(*flat, labels=names, average=None).tolist())
