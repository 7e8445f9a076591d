"""Documents of a folder: terms, passages, BM25 against its formula, and what is left out."""

import gzip
import json
import math
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bertjax.errors import UserError
from bertjax.evaluation.retrieval import document_files, passages
from bertjax.evaluation.retrieval.document_files import LeftOut, find_files
from bertjax.evaluation.retrieval.index import PassageIndex
from bertjax.evaluation.retrieval.passages import TermIds, cut_passages
from bertjax.evaluation.retrieval.terms import terms, units

pytest.importorskip("bm25s")

CORPUS = [
    "the cat sat on the mat and the cat slept",
    "a dog and a cat met the other dog",
    "birds sing in the morning",
    "the the the the",
    "morning dog dog dog walks with one very long sentence about nothing in particular for a dog",
]
SEVERAL_SCRIPTS = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from(" \n\r\t.,'“”…-_aAeß1éＡ中文字ひらカタกรุงเท\u0e34\u0301\u200c\u200d\ufeff😀म\u093fन"),
    ),
    max_size=400,
)


def okapi(corpus: list[list[str]], question: list[str], k1: float, b: float) -> list[float]:
    """Lucene's BM25 as its documentation writes it."""
    count = len(corpus)
    mean = sum(map(len, corpus)) / count
    scores = []
    for document in corpus:
        total = 0.0
        for term in question:
            containing = sum(term in other for other in corpus)
            idf = math.log(1 + (count - containing + 0.5) / (containing + 0.5))
            frequency = document.count(term)
            total += idf * frequency / (frequency + k1 * (1 - b + b * len(document) / mean))
        scores.append(total)
    return scores


@pytest.mark.parametrize(
    "question", ["the cat", "Dog in the morning?", "dog dog cat", "very particular nothing", "zebra"]
)
def test_bm25_is_its_formula(tmp_path, question):
    for number, text in enumerate(CORPUS):
        (tmp_path / f"{number}.txt").write_text(text)
    index = PassageIndex(tmp_path)
    asked = question.lower().rstrip("?").split()
    wanted = okapi([text.split() for text in CORPUS], asked, k1=1.2, b=0.75)
    found = dict(index.search(question, 10))
    assert found.keys() == {n for n, score in enumerate(wanted) if score > 0}
    assert all(found[n] == pytest.approx(wanted[n], rel=1e-5) for n in found)
    assert list(found) == sorted(found, key=lambda n: -wanted[n])
    assert [n for n, _ in index.search(question, 2)] == list(found)[:2]


def test_equal_passages_keep_their_order(tmp_path):
    for name in "cab":
        (tmp_path / f"{name}.txt").write_text("The same text.")
    index = PassageIndex(tmp_path)
    assert [index.source(n).file.name for n, _ in index.search("same", 3)] == ["a.txt", "b.txt", "c.txt"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Don't STOP, naïve_2", ["don", "t", "stop", "naïve", "2"]),
        ("ＦＵＬＬ straße", ["full", "strasse"]),
        ("cafe\u0301", ["café"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("北京大学", ["北", "京", "大", "学", "北京", "京大", "大学"]),
        ("北京 大学", ["北", "京", "大", "学", "北京", "大学"]),
        ("カタカナと", ["カ", "タ", "カ", "ナ", "と", "カタ", "タカ", "カナ", "ナと"]),
        ("ที่", ["ที่"]),  # one character with its marks
        ("x中y", ["x", "中", "y"]),
        ("서울은 수도", ["서울은", "수도"]),  # Korean has spaces
        ("?! …", []),
    ],
)
def test_terms_of_all_scripts(text, wanted):
    assert terms(text) == wanted


@given(SEVERAL_SCRIPTS)
@settings(deadline=None)
def test_units_are_characters_of_the_text(text):
    found = list(units(text))
    assert all(a.end <= b.start for a, b in zip(found, found[1:], strict=False))
    assert all(0 <= one.start < one.end <= len(text) and one.term for one in found)
    covered = {place for one in found for place in range(one.start, one.end)}
    assert all(place in covered for place, char in enumerate(text) if char.isalnum())


@given(SEVERAL_SCRIPTS, st.integers(2, 12), st.integers(0, 6))
@example("㐀0𠀀0", 2, 1)
@settings(max_examples=80, deadline=None)
def test_passages_cover_all_words_and_overlap(text, words, overlap):
    overlap = min(overlap, words - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passages, "WORDS", words)
        patch.setattr(passages, "OVERLAP", overlap)
        patch.setattr(passages, "_BUFFER", 10_000)
        known = TermIds()
        found = list(cut_passages(text, known))
        patch.setattr(passages, "_BUFFER", 3 * words)  # a long document is cut piece by piece
        assert list(cut_passages(text, TermIds())) == found
        patch.setattr(passages, "is_spaced", lambda text: False)  # words are cut as characters are
        assert list(cut_passages(text, TermIds())) == found
    names = {number: term for term, number in known.vocabulary.items()}
    everything = [one for one in units(text)]
    assert bool(found) == bool(everything)
    for one in everything:
        assert any(p.start <= one.start and one.end <= p.end for p in found)
    for passage in found:
        inside = [one for one in everything if passage.start <= one.start and one.end <= passage.end]
        assert not text[passage.start].isspace() and not text[passage.end - 1].isspace()
        assert sum(0.5 if one.unspaced else 1 for one in inside) <= words
        assert Counter(names[n] for n in passage.terms) == Counter(terms(text[passage.start : passage.end]))
    assert all(a.start < b.start and a.end < b.end for a, b in zip(found, found[1:], strict=False))


def test_the_size_of_passages():
    text = " ".join(f"w{n}" for n in range(401))
    found = [text[p.start : p.end].split() for p in cut_passages(text, TermIds())]
    assert [(words[0], words[-1]) for words in found] == [
        ("w0", "w149"), ("w100", "w249"), ("w200", "w349"), ("w300", "w400")
    ]  # fmt: skip
    chinese = "中" * 1000
    assert [(p.start, p.end) for p in cut_passages(chinese, TermIds())] == [
        (0, 300), (200, 500), (400, 700), (600, 900), (800, 1000)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("居里夫人在哪里出生？", "zh.txt"),
        ("水はどこにありますか", "ja.txt"),
        ("เมืองหลวงของประเทศไทยคืออะไร", "th.txt"),
        ("Столица России?", "ru.txt"),
        ("भारत की राजधानी", "hi.txt"),
    ],
)
def test_questions_in_many_languages_find_their_document(tmp_path, question, wanted):
    texts = {
        "zh": "居里夫人于1867年出生于华沙。", "zh2": "诺贝尔奖每年在斯德哥尔摩颁发。", "ja": "水は川と海にあります。",
        "ja2": "東京は日本の首都です。", "th": "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย", "th2": "ฝนตกในตอนเช้า",
        "ru": "Москва — столица России.", "hi": "भारत की राजधानी नई दिल्ली है।", "en": "Water is in rivers.",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    index = PassageIndex(tmp_path)
    assert index.source(index.search(question, 1)[0][0]).file.name == wanted


@given(st.lists(SEVERAL_SCRIPTS, min_size=1, max_size=4), st.booleans())
@settings(max_examples=40, deadline=None)
def test_passages_are_characters_of_their_file(tmp_path_factory, texts, as_records):
    folder = tmp_path_factory.mktemp("documents")
    for number, text in enumerate(texts):
        content = json.dumps({"text": text}, ensure_ascii=False) if as_records else text
        (folder / f"{number}.{'jsonl' if as_records else 'txt'}").write_bytes(content.encode())
    try:
        index = PassageIndex(folder)
    except UserError as error:
        assert "hold no word" in str(error)
        return
    found = index.texts(range(len(index)))
    for number in range(len(index)):
        where = index.source(number)
        content = where.file.read_bytes().decode()
        if as_records:
            assert where.line == 1
            content = json.loads(content)["text"]
        assert found[number] == content[where.start : where.end] and found[number]


def test_what_is_left_out_is_counted(tmp_path):
    docs = tmp_path / "docs"
    (docs / "b" / "deep").mkdir(parents=True)
    (docs / "a.txt").write_text("One two.")
    (docs / "b" / "deep" / "c.md").write_text("Three four.")
    (docs / "b" / "d.jsonl").write_text('{"text": "five"}\n\n{"text": ""}\n{"text": null}\n{"text": "six"}\n')
    with gzip.open(docs / "e.rst.gz", "wt") as file:
        file.write("seven")
    (docs / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (docs / "nul.txt").write_bytes(b"a\0b")
    (docs / "signs.txt").write_text("?!")
    (docs / "empty.txt").touch()
    (docs / "photo.jpg").write_bytes(b"\xff\xd8")
    (docs / ".hidden.txt").write_text("eight")
    (docs / "gone.txt").symlink_to("nowhere.txt")
    (docs / "link.txt").symlink_to("a.txt")
    (docs / "loop").symlink_to(docs)
    (docs / "fifo.txt").unlink(missing_ok=True)
    os.mkfifo(docs / "fifo.txt")
    index = PassageIndex(docs)
    read = [(index.source(n).file.relative_to(docs).as_posix(), index.source(n).line) for n in range(len(index))]
    assert read == [
        ("a.txt", 0), ("e.rst.gz", 0), ("link.txt", 0), ("b/d.jsonl", 1), ("b/d.jsonl", 5), ("b/deep/c.md", 0)
    ]  # fmt: skip
    assert {reason: number for reason, (number, _) in index.left_out.reasons.items()} == {
        "hidden": 1, "files of other kinds": 1, "broken links": 1, "links to folders": 1, "no regular files": 1,
        "files that are not UTF-8 text": 1, "binary files": 1, "files without text": 1, "documents without a word": 1,
        "records without text": 2,
    }  # fmt: skip
    assert "files that are not UTF-8 text: 1 (first: latin.txt, byte 3)" in index.summary()
    assert "records without text: 2 (first: b/d.jsonl: line 3)" in index.summary()


def test_unreadable_files_and_folders_are_counted(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "b.txt")
    opened = document_files.open_binary

    def refuse(path: Path):
        if path.name == "b.txt":
            raise UserError(f"{path}: cannot be opened (Permission denied); check its permissions")
        return opened(path)

    monkeypatch.setattr(document_files, "open_binary", refuse)
    assert PassageIndex(tmp_path).left_out.reasons == {"files that cannot be read": (1, "b.txt")}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "docs: no document in this folder"),
        ({"a.pdf": b"x"}, "docs: no document in this folder (.txt, .text, .md, .markdown, .rst or .jsonl"),
        ({"a.txt": b"\xff"}, "docs: its documents hold no word; left out: files that are not UTF-8 text: 1"),
        ({"a.jsonl": b"{\n"}, "docs/a.jsonl: line 1: not valid JSON"),
        (
            {"a.jsonl": b'{"body": "x"}\n'},
            "docs/a.jsonl: line 1: no field 'text'; the fields are: body; name the field",
        ),
        ({"a.jsonl": b'{"text": 3}\n'}, "docs/a.jsonl: line 1: 'text' is a int, not a text; correct the record"),
        ({"a.txt.gz": b"\x1f\x8b\x08"}, "docs/a.txt.gz: the .gz data is cut short or damaged"),
    ],
)
def test_folders_that_cannot_be_searched(tmp_path, monkeypatch, files, message):
    monkeypatch.chdir(tmp_path)
    Path("docs").mkdir()
    for name, content in files.items():
        Path("docs", name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        PassageIndex(Path("docs"))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_single_file_another_field_and_a_file_of_another_kind(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "one word"}\n')
    index = PassageIndex(tmp_path / "a.jsonl", "body")
    assert index.texts([0]) == {0: "one word"} and index.is_current("body") and not index.is_current("text")
    (tmp_path / "a.pdf").touch()
    with pytest.raises(UserError, match="a.pdf: is not a document: .txt"):
        find_files(tmp_path / "a.pdf", LeftOut())
    with pytest.raises(UserError, match="none: no such file or folder"):
        find_files(tmp_path / "none", LeftOut())


def test_a_file_that_changes_is_noticed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one two")
    index = PassageIndex(tmp_path)
    assert index.is_current("text")
    path.write_text("one two three")
    assert not index.is_current("text")
    with pytest.raises(UserError, match=r"a.txt: changed while it was searched; run the command again"):
        index.texts([0])
