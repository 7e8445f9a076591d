"""Words with labels: files in columns, entities of texts, pieces as transformers makes them, windows without a loss."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preparing import bert

from bertjax.config.loading.load import build
from bertjax.config.schema.data import Task, TokenLabels
from bertjax.config.schema.sources import Conll, HuggingFaceData, JsonLines, Parquet
from bertjax.data.pipeline.prepare import prepare
from bertjax.data.preprocess.token_labels.sentences import read_sentences, to_sentences
from bertjax.data.preprocess.token_labels.words import (
    Pieces,
    cut_long_words,
    encode_texts,
    encode_words,
    split_words,
    windows,
)
from bertjax.data.sources.class_names import ClassSpec, names_from_source
from bertjax.data.sources.conll import sentences
from bertjax.data.tokenizers import load
from bertjax.errors import UserError

CONLL2003 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC
call NN I-NP O
. . O O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""
CONLLU = """# sent_id = 1
# text = Vámonos al mar
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
2.1\tnada\t_\tX\t_\t_\t_\t_\t_\t_
3\tmar\tmar\tNOUN\t_\t_\t1\tobl\t_\t_
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# ---- files in columns -----------------------------------------------------------------------------------------------


def test_conll_2003(tmp_path):
    path = write(tmp_path / "eng.conll", CONLL2003)
    (first, eu), (second, peter) = sentences(path)
    assert eu["tokens"] == ["EU", "rejects", "German", "call", "."] and eu["text"] == "EU rejects German call ."
    assert eu["ner_tags"] == ["B-ORG", "O", "B-MISC", "O", "O"]
    assert (first, second) == (f"{path}: line 3", f"{path}: line 9")
    assert peter["ner_tags"] == ["B-PER", "I-PER"]
    named = [record for _, record in sentences(path, ["tokens", "pos_tags", "chunk_tags", "ner_tags"])]
    assert named[0]["pos_tags"] == ["NNP", "VBZ", "JJ", "NN", "."] and named[1]["chunk_tags"] == ["B-NP", "I-NP"]


def test_columns_by_tabs_comments_and_other_spaces(tmp_path):
    path = write(tmp_path / "deu.tsv.conll", "# http://example.org\n1\tNew\u00a0York\tB-LOC\tO\n2\t#\tO\tO\n")
    ((_, record),) = sentences(path, ["id", "tokens", "ner_tags", "nested"], comment="# ")
    assert record["tokens"] == ["New\u00a0York", "#"] and record["ner_tags"] == ["B-LOC", "O"]
    plain = write(tmp_path / "a.conll", "10\u00a0000 O\r\n\r\n# O\n")
    assert [record["tokens"] for _, record in sentences(plain)] == [["10\u00a0000"], ["#"]]


def test_conllu(tmp_path):
    ((_, record),) = sentences(write(tmp_path / "es.conllu", CONLLU))
    assert record["tokens"] == ["Vamos", "nos", "mar"] and record["upos_tags"] == ["VERB", "PRON", "NOUN"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("EU B-ORG\nrejects\n", "line 2: one column ('rejects'); a line has a word and its label"),
        ("EU NNP B-ORG\nrejects O\n", "line 2: 2 columns, the line before has 3; correct the line"),
        ("", "the file is empty"),
    ],
)
def test_damaged_columns_are_one_line(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        list(sentences(write(tmp_path / "a.conll", text)))
    assert message in str(error.value) and str(error.value).startswith(str(tmp_path / "a.conll"))


# ---- records --------------------------------------------------------------------------------------------------------


def one(record: dict[str, Any], **options: Any) -> Any:
    (found,) = to_sentences(iter([("a.jsonl: line 7", record)]), TokenLabels(**options), options.get("labels"))
    return found


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ({"tokens": ["a", "b"], "ner_tags": ["O"]}, {}, "there are 2 in 'tokens' and 1 in 'ner_tags'"),
        ({"tokens": ["a"], "tags": ["O"]}, {}, "'ner_tags' is missing; it has: tokens, tags; name the right field"),
        ({"tokens": "a b", "ner_tags": ["O"]}, {}, "'tokens' is not a list but a str; for running text"),
        ({"tokens": ["a", ""], "ner_tags": ["O", "O"]}, {}, "word 2 of 'tokens' is empty"),
        ({"tokens": ["a", 3], "ner_tags": ["O", "O"]}, {}, "word 2 of 'tokens' is the number 3, not a text"),
        (
            {"tokens": ["a"], "ner_tags": [0.5]},
            {},
            "word 1 of 'ner_tags' has the number 0.5, a label is a name or an id",
        ),
        (
            {"tokens": ["a"], "ner_tags": [2]},
            {"labels": ["O", "B-X"]},
            "label '2' of word 1 is not one of those: O, B-X",
        ),
        ({"text": "a b", "spans": [[0, 9, "X"]]}, {"text": "text"}, "is at characters 0 to 9 of a text of 3"),
        (
            {"text": "a b", "spans": [[0, 1]]},
            {"text": "text"},
            "'spans' holds a list; an entity is {start, end, label}",
        ),
        ({"text": "a b", "spans": [{"start": 0, "end": 1}]}, {"text": "text"}, "has no label that is a text"),
        (
            {"text": "a b", "spans": [[0, 3, "X"], [2, 3, "Y"]]},
            {"text": "text"},
            "(X and Y) share the word at characters",
        ),
        ({"text": "a b", "spans": [[1, 2, "X"]]}, {"text": "text"}, "at characters 1 to 2 holds no word"),
        (
            {"text": "a b", "spans": [{"start": 0, "end": 1, "label": "X", "text": "b"}]},
            {"text": "text"},
            "says 'b', the text has 'a'",
        ),
    ],
)
def test_records_that_cannot_be_used_are_one_line(record, options, message):
    with pytest.raises(UserError) as error:
        one(record, **options)
    assert message in str(error.value) and str(error.value).startswith("a.jsonl: line 7: ")


@pytest.mark.parametrize(
    "spans",
    [
        [{"start": 0, "end": 13, "label": "PER"}, {"start": 21, "end": 29, "label": "LOC"}],  # Prodigy
        [
            {"start": 0, "end": 13, "text": "Angela Merkel", "labels": ["PER"]},
            {"start": 21, "end": 29, "labels": ["LOC"]},
        ],
        [{"start_offset": 21, "end_offset": 29, "label": "LOC"}, {"start_offset": 0, "end_offset": 13, "label": "PER"}],
        [[0, 13, "PER"], [21, 29, "LOC"]],  # spaCy
    ],
)
def test_entities_of_annotation_tools(spans):
    found = one({"text": "Angela Merkel was in New York.", "spans": [*spans]}, text="text")
    assert found.words == ["Angela", "Merkel", "was", "in", "New", "York", "."]
    assert found.tags == ["B-PER", "I-PER", "O", "O", "B-LOC", "I-LOC", "O"]


def test_entities_inside_words_are_widened_and_counted():
    found = one({"text": "Berliner Luft", "spans": [[0, 6, "LOC"]]}, text="text")
    assert found.tags == ["B-LOC", "O"] and found.widened == 1
    assert one({"text": "a Berlin b", "spans": [[1, 9, "LOC"]]}, text="text").widened == 0  # spaces are not words


def test_words_of_many_scripts():
    text = "Don't! 東京は É\u0301a हिन्दी 3.5"
    assert [text[a:b] for a, b in split_words(text)] == [
        "Don", "'", "t", "!", "東", "京", "は", "É\u0301a", "हिन्दी", "3", ".", "5",
    ]  # fmt: skip


def test_class_labels_of_lists(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({
        "tokens": datasets.Sequence(datasets.Value("string")),
        "ner_tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B-X", "I-X"])),
    })  # fmt: skip
    data = datasets.Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [[1, 0]]}, features=features)
    data.save_to_disk(str(tmp_path / "saved"))
    data.to_parquet(str(tmp_path / "a.parquet"))
    for source in (HuggingFaceData(name=str(tmp_path / "saved")), Parquet(files=["a.parquet"])):
        assert names_from_source(source, tmp_path, "ner_tags") == ("O", "B-X", "I-X")
        task = Task(source=source, preprocess=TokenLabels())
        (found,) = read_sentences(task, tmp_path, 0, {0: ("O", "B-X", "I-X")})
        assert found.tags == ["B-X", "O"]


# ---- pieces ---------------------------------------------------------------------------------------------------------

SENTENCES = [
    ["EU", "rejects", "German", "call", "."], ["Don't", "panic", "!"], ["naïve", "café", "東京", "x"], ["3.14", "U.S."],
    ["a" * 120, "#", "[SEP]"],
]  # fmt: skip


def tokenizer_folder(kind: str, out: Path) -> Path:
    """A folder of transformers with a small tokenizer of a kind."""
    transformers = pytest.importorskip("transformers")
    import tokenizers

    text = [" ".join(words) for words in SENTENCES] * 20 + ["the German rejects the call of the EU"] * 20
    if kind == "bpe":
        backend: Any = tokenizers.ByteLevelBPETokenizer()
        backend.train_from_iterator(text, vocab_size=330, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
        backend.save_model(str(out))
        found = transformers.RobertaTokenizer.from_pretrained(out)
    elif kind == "unigram":
        import sentencepiece

        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text), model_prefix=str(out / "spiece"), vocab_size=90, minloglevel=9,
            unk_piece="<unk>", bos_piece="<s>", eos_piece="</s>", hard_vocab_limit=False, num_threads=1,
        )  # fmt: skip
        (out / "sentencepiece.bpe.model").write_bytes((out / "spiece.model").read_bytes())
        (out / "spiece.model").unlink()
        found = transformers.XLMRobertaTokenizer.from_pretrained(out)
    else:
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "eu", "german", *"abcdefghijklmnoprstuvw!'#.13", "##e"]
        write(out / "vocab.txt", "\n".join([*pieces, *(f"##{c}" for c in "abcdfghijklmnoprstuvw.13")]) + "\n")
        found = transformers.BertTokenizer.from_pretrained(out)
    found.save_pretrained(out)
    write(out / "config.json", json.dumps({"model_type": "bert"}))
    return out


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_words_have_the_pieces_that_transformers_gives_them(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = tokenizer_folder(kind, tmp_path)
    prefix = {"add_prefix_space": True} if kind == "bpe" else {}  # as run_ner.py loads it
    theirs = transformers.AutoTokenizer.from_pretrained(folder, **prefix)
    found = encode_words(SENTENCES, load.from_file(folder))
    for words, ours in zip(SENTENCES, found, strict=True):
        expected = theirs(words, is_split_into_words=True, add_special_tokens=False)
        assert ours.ids == expected["input_ids"]
        assert ours.words.tolist() == expected.word_ids()
        starts = [i for i, word in enumerate(expected.word_ids()) if word not in expected.word_ids()[:i]]
        assert np.flatnonzero(ours.first).tolist() == starts


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_pieces_of_texts_belong_to_the_words_where_they_begin(kind, tmp_path):
    tokenizer = load.from_file(tokenizer_folder(kind, tmp_path))
    texts = ["German call.", "  EU,call\n", "", "   "]
    words = [split_words(text) for text in texts]
    for text, spans, pieces in zip(texts, words, encode_texts(texts, words, tokenizer), strict=True):
        (ids,) = tokenizer.encode_batch([text])
        assert pieces.ids == ids
        for word, (start, end) in enumerate(spans):
            (offset,) = {pieces.offsets[i] for i in np.flatnonzero(pieces.first & (pieces.words == word))}
            assert start <= offset[1] - len(text[offset[0] : offset[1]].lstrip()) < end
        assert np.all(np.diff(pieces.words[pieces.words >= 0]) >= 0)


def test_a_word_without_pieces_is_the_unknown_token():
    tokenizer = bert()
    (found,) = encode_words([["ban", "\u200b", "kolo"]], tokenizer)
    assert found.words.tolist() == sorted(found.words.tolist()) and set(found.words.tolist()) == {0, 1, 2}
    assert found.ids[1] == tokenizer.unk_id


# ---- windows --------------------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=60),
    room=st.integers(1, 24),
    overlap=st.integers(0, 30),
)
@settings(max_examples=300, deadline=None)
def test_windows_label_every_word_once_with_the_most_context(sizes, room, overlap):
    words = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    first = np.diff(words, prepend=-1) != 0
    sentence = cut_long_words(Pieces(list(range(len(words))), words, first), room)
    assert sentence.lost == sum(max(0, size - room) for size in sizes)
    kept = [min(size, room) for size in sizes]
    assert np.bincount(sentence.words).tolist() == kept
    found = windows(sentence, room, overlap)
    total, owned = len(sentence.ids), np.zeros(len(sentence.ids), int)
    starts = set(np.flatnonzero(sentence.first).tolist())
    for window in found:
        assert 0 < window.stop - window.start <= room and window.start in starts
        assert window.stop == total or window.stop in starts  # words are not divided
        owned[window.start : window.stop] += window.own
    assert (owned == 1).all()
    for one, other in zip(found, found[1:], strict=False):
        assert one.start < other.start <= one.stop < other.stop
    for word, begin in enumerate(np.flatnonzero(sentence.first).tolist()):
        end = begin + kept[word]
        context = [
            min(begin - w.start if w.start else total, w.stop - end if w.stop < total else total)
            for w in found if w.start <= begin and end <= w.stop
        ]  # fmt: skip
        (owner,) = [w for w in found if w.start <= begin < w.stop and w.own[begin - w.start]]
        best = min(begin - owner.start if owner.start else total, owner.stop - end if owner.stop < total else total)
        assert best == max(context)


# ---- prepared rows --------------------------------------------------------------------------------------------------


def prepared(folder: Path, options: TokenLabels, source: Any, classes: ClassSpec | None = None) -> Any:
    task, lines = Task(source=source, preprocess=options), []
    store = prepare(
        task, "t", bert(), seed=1, base=folder, cache=folder / "cache", workers=1, classes=classes, report=lines.append
    )  # fmt: skip
    return store, store.rows(np.arange(len(store))), lines


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("every", [False, True])
def test_rows_hold_every_word_of_every_sentence_once(tmp_path, pack, every):
    rng = np.random.default_rng(0)
    words = ["ban", "kolo", "mis", "tuning", "rapes", ".", "zzz"]
    with (tmp_path / "a.conll").open("w") as file:
        texts = []
        for _ in range(30):
            texts.append([(words[i], ["O", "B-X", "I-X"][i % 3]) for i in rng.integers(7, size=rng.integers(1, 40))])
            file.write("\n".join(f"{w} {t}" for w, t in texts[-1]) + "\n\n")
    options = TokenLabels(sequence_length=16, pack=pack, label_all_tokens=every)
    store, rows, lines = prepared(tmp_path, options, Conll(files=["a.conll"]), ClassSpec(3))
    names = store.meta["labels"]
    assert names == ["B-X", "I-X", "O"] and (store.meta["sentences"], store.meta["split"] > 0) == (30, True)
    assert any("are longer than a row (sequence_length 16): read in" in line for line in lines)
    found: dict[tuple[int, int], tuple[int, int]] = {}
    labelled = 0
    for row in rows:
        own = row["segment_ids"] > 0
        assert (row["token_labels"][own] >= 0).sum() >= (row["word_ids"][own] >= 0).sum()
        labelled += int((row["token_labels"][own] >= 0).sum())
        for place in np.flatnonzero(own & (row["word_ids"] >= 0)):
            key = (int(row["example_ids"][row["segment_ids"][place] - 1]), int(row["word_ids"][place]))
            assert key not in found
            found[key] = (int(row["token_labels"][place]), int(row["input_ids"][place]))
    assert found.keys() == {(n, i) for n, text in enumerate(texts) for i in range(len(text))}
    assert all(names[found[n, i][0]] == tag for n, text in enumerate(texts) for i, (_, tag) in enumerate(text))
    pieces = sum(len(ids) for text in texts for ids in bert().encode_batch([word for word, _ in text]))
    assert labelled == (pieces if every else len(found))


def test_hidden_labels_are_neither_trained_on_nor_scored(tmp_path):
    records = [{"tokens": ["ban", "kolo", "mis"], "ner_tags": tags} for tags in ([0, -100, 1], [1, None, -1])]
    write(tmp_path / "a.jsonl", "".join(json.dumps(one) + "\n" for one in records))
    store, rows, lines = prepared(tmp_path, TokenLabels(labels=["O", "X"]), JsonLines(files=["a.jsonl"]), ClassSpec(2))
    kept = [row["token_labels"][row["word_ids"] >= 0].tolist() for row in rows]
    assert kept == [[0, -100, 1], [1, -100, -100]]
    assert "t: 3 of 6 words have no label: neither trained on nor scored" in lines


def test_labels_that_do_not_fit_are_one_line(tmp_path):
    write(tmp_path / "a.conll", "ban B-X\nkolo O\n")
    source = Conll(files=["a.conll"])
    with pytest.raises(UserError, match=r"task 't': objective.num_labels is 9 but the data have 2 labels \(B-X, O\)"):
        prepared(tmp_path, TokenLabels(), source, ClassSpec(9))
    with pytest.raises(UserError, match=r"line 1: word 1: label 'B-X' is not one of those: O, B-Y"):
        prepared(tmp_path, TokenLabels(), source, ClassSpec(2, ("O", "B-Y"), required=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 126}, r"stride \(126\) must be at most sequence_length - 3 \(125\)"),
        ({"labels": ["O", "O"]}, "labels: two of them are 'O'"),
    ],
)
def test_configurations_that_cannot_be_are_refused(options, message):
    preprocess = {"kind": "token_labels", **options}
    stage = {"name": "s", "steps": 1, "objective": {"kind": "token_classification", "num_labels": 2}}
    stage["data"] = {"source": {"kind": "conll", "files": ["a.conll"]}, "preprocess": preprocess}
    with pytest.raises(UserError, match=message):
        build({"stages": [stage]})
