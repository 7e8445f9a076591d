"""WordPiece: the same bytes on every training, parity with transformers, and one-line errors."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers

from bertjax.config.schema.data import WordPieceConfig
from bertjax.data.tokenizers import files
from bertjax.data.tokenizers import load as tokenizers_load
from bertjax.data.tokenizers.load import Tokenizer
from bertjax.errors import UserError

SENTENCES = [
    "The cat sat on the mat and the dog sat beside the cat.",
    "Unaffable people are seldom affable: café, naïve, Straße!",
    "Tokenization of tokens tokenizes the tokenizer's tokens.",
    "Zebras quickly jump over 13 lazy dogs; why?",
    "日本 is written with two letters.",
]
VOCAB = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "want",
    "##want",
    "##ed",
    "wa",
    "un",
    "runn",
    "##ing",
    ",",
    "the",
]


def documents() -> Iterator[list[str]]:
    return iter([SENTENCES * 5, ["The mat, the mat."] * 5])


def trained(**options) -> Tokenizer:
    return tokenizers_load.train(documents, **({"vocab_size": 160, "lowercase": True} | options))


def vocab_file(folder: Path, pieces: list[str] = VOCAB) -> Path:
    path = folder / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return path


def test_trained_vocabulary() -> None:
    tokenizer = trained()
    assert tokenizer.pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert ids == (0, 1, 2, 3, 4)
    assert tokenizer.vocab_size == len(tokenizer.pieces) == len(set(tokenizer.pieces)) <= 160
    assert "the" in tokenizer.pieces and "cat" in tokenizer.pieces
    assert [p for p, c in zip(tokenizer.pieces, tokenizer.is_continuation, strict=True) if c] == [
        p for p in tokenizer.pieces if p.startswith("##")
    ]
    (encoded,) = tokenizer.encode_batch(["The café sat, naively."])
    assert tokenizer.decode(encoded) == "the cafe sat, naively."  # lower case, accents stripped, nothing unknown


def test_trained_vocabulary_can_spell_every_word_it_saw() -> None:
    tokenizer = trained(vocab_size=400)
    for ids in tokenizer.encode_batch(SENTENCES):
        assert tokenizer.unk_id not in ids


def test_cased_training_keeps_case_and_accents() -> None:
    tokenizer = trained(lowercase=False, vocab_size=300)
    assert not tokenizer.lowercase and trained().lowercase
    assert "The" in tokenizer.pieces and "é" in "".join(tokenizer.pieces)


def test_alphabet_is_bounded() -> None:
    """A text with more letters than the vocabulary has room for still trains, and on words."""
    letters = [chr(0x4E00 + i) for i in range(500)]
    tokenizer = tokenizers_load.train(lambda: iter([letters, ["the cat sat"] * 20]), vocab_size=120, lowercase=True)
    assert tokenizer.vocab_size <= 120
    assert tokenizer.encode_batch([letters[499]]) == [[tokenizer.unk_id]]


CODE = """
import sys
from bertjax.data.sources.stdlib import docs
from bertjax.data.tokenizers import load
text = [s for name, s in docs.documents("heldout")][:40]
print(load.train(lambda: iter(text), vocab_size=2000, lowercase=True).sha256)
"""


@pytest.mark.slow
def test_training_is_reproducible_between_processes() -> None:
    """huggingface/tokenizers issue 1794: the library alone gives another vocabulary on every run."""
    settings = [("1", "true"), ("2", "false"), ("77", "true"), ("random", "true")]
    found = {
        subprocess.run(
            [sys.executable, "-c", CODE],
            env=os.environ | {"PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, threads in settings
    }
    assert len(found) == 1 and len(found.pop().strip()) == 64


def test_reference_example(tmp_path: Path) -> None:
    """tokenization_test.py of google-research/bert, test_full_tokenizer and test_wordpiece_tokenizer."""
    pieces = ["[PAD]", "[MASK]", "[UNK]", "[CLS]", "[SEP]", "want", "##want", "##ed", "wa", "un", "runn", "##ing", ","]
    tokenizer = tokenizers_load.from_file(vocab_file(tmp_path, pieces))

    def split(text: str) -> list[str]:
        return [tokenizer.pieces[i] for i in tokenizer.encode_batch([text])[0]]

    assert split("UNwant\u00e9d,running") == ["un", "##want", "##ed", ",", "runn", "##ing"]
    assert split("unwantedX running") == ["[UNK]", "runn", "##ing"]
    assert split("") == []


def test_long_words_follow_the_reference_not_transformers(tmp_path: Path) -> None:
    tokenizer = tokenizers_load.from_file(vocab_file(tmp_path, VOCAB + ["a", "##a"]))
    assert len(tokenizer.encode_batch(["a" * 200])[0]) == 200
    assert tokenizer.encode_batch(["a" * 201]) == [[tokenizer.unk_id]]


def test_text_never_makes_special_tokens(tmp_path: Path) -> None:
    tokenizer = tokenizers_load.from_file(vocab_file(tmp_path, VOCAB + ["[", "]", "mask", "sep"]))
    (ids,) = tokenizer.encode_batch(["the [MASK] [SEP]"])
    assert [tokenizer.pieces[i] for i in ids] == ["the", "[", "mask", "]", "[", "sep", "]"]


def test_save_and_load_again(tmp_path: Path) -> None:
    tokenizer = trained()
    tokenizer.save(tmp_path / "t")
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == ["tokenizer.json", "vocab.txt"]
    for path in (tmp_path / "t", tmp_path / "t" / "tokenizer.json", tmp_path / "t" / "vocab.txt"):
        again = tokenizers_load.from_file(path)
        assert again.sha256 == tokenizer.sha256 and again.pieces == tokenizer.pieces
        assert again.encode_batch(SENTENCES) == tokenizer.encode_batch(SENTENCES)
    again.save(tmp_path / "again")
    for name in ("tokenizer.json", "vocab.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "t" / name).read_bytes()


def test_saved_tokenizer_adds_special_tokens_for_other_tools(tmp_path: Path) -> None:
    backend = trained().backend
    encoded = backend.encode("the cat", "the mat")
    assert encoded.tokens == ["[CLS]", "the", "cat", "[SEP]", "the", "mat", "[SEP]"]
    assert encoded.type_ids == [0, 0, 0, 0, 1, 1, 1]


def test_case_comes_from_the_files_before_the_config(tmp_path: Path) -> None:
    path = vocab_file(tmp_path, VOCAB + ["The"])
    assert tokenizers_load.from_file(path).lowercase and not tokenizers_load.from_file(path, lowercase=False).lowercase
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert not tokenizers_load.from_file(tmp_path).lowercase
    assert tokenizers_load.from_file(path).encode_batch(["The"]) == [[len(VOCAB)]]


def test_padding_and_truncation_in_a_file_are_switched_off(tmp_path: Path) -> None:
    backend = trained().backend
    backend.enable_padding(length=8)
    backend.enable_truncation(3)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert len(tokenizers_load.from_file(tmp_path).encode_batch(["the cat sat on the mat"])[0]) == 6


def test_load_trains_once_and_caches(tmp_path: Path) -> None:
    calls = []

    def source() -> Iterator[list[str]]:
        calls.append(1)
        return documents()

    options = {"vocab_size": 160, "train_source_documents": source, "cache": tmp_path, "fingerprint": "f1"}
    first = tokenizers_load.load(WordPieceConfig(), tmp_path, **options)
    trained_calls = len(calls)
    second = tokenizers_load.load(WordPieceConfig(), tmp_path, **options)
    assert trained_calls > 0 and len(calls) == trained_calls and first.sha256 == second.sha256 == trained().sha256
    assert tokenizers_load.load(WordPieceConfig(vocab_size=120), tmp_path, **options).vocab_size <= 120
    assert len(calls) > trained_calls
    assert len(list((tmp_path / "tokenizers").iterdir())) == 2


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "sha256.json"])
def test_a_flipped_bit_in_the_cache_is_trained_again(tmp_path: Path, capsys, name: str) -> None:
    options = {"vocab_size": 160, "train_source_documents": documents, "cache": tmp_path, "fingerprint": "f1"}
    first = tokenizers_load.load(WordPieceConfig(), tmp_path, **options)
    (folder,) = (tmp_path / "tokenizers").iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    assert tokenizers_load.load(WordPieceConfig(), tmp_path, **options).sha256 == first.sha256
    assert "trained again" not in capsys.readouterr().err  # the control
    content = bytearray(before[name])
    content[content.index(b"two" if b"two" in content else b': "') + 2] ^= 1
    (folder / name).write_bytes(content)
    if name == "tokenizer.json":  # read without a digest, it is another tokenizer
        assert tokenizers_load.from_file(folder).sha256 != first.sha256
    assert tokenizers_load.load(WordPieceConfig(), tmp_path, **options).sha256 == first.sha256
    assert f"note: {folder}: not as it was written; the tokenizer is trained again" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# A vowel sign, a tone or an umlaut is part of the word: uncased vocabularies of these languages keep accents.
LANGUAGES = {
    "German": "Größe und Maß für Übermut, Öl und Äpfel.",
    "Hindi": "हिन्दी में लिखा हुआ वाक्य और उसकी मात्राएँ।",
    "Vietnamese": "Tiếng Việt rất đẹp, ƯỚC MƠ của tôi.",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_uncased_vocabulary_that_keeps_accents(language: str, tmp_path: Path) -> None:
    text = LANGUAGES[language]
    options = {"train_source_documents": lambda: iter([[text] * 5]), "cache": tmp_path, "fingerprint": "f1"}
    kept = tokenizers_load.load(WordPieceConfig(strip_accents=False), tmp_path, vocab_size=400, **options)
    bare = tokenizers_load.load(WordPieceConfig(), tmp_path, vocab_size=400, **options)
    assert kept.lowercase and len(list((tmp_path / "tokenizers").iterdir())) == 2
    assert kept.encode_batch([text])[0] != bare.encode_batch([text])[0]
    for tokenizer, accents in ((kept, True), (bare, False)):
        (ids,) = tokenizer.encode_batch([text])
        assert tokenizer.unk_id not in ids
        spelled = "".join(text.lower().split())
        if not accents:  # as BERT strips them: nonspacing marks of the decomposed text
            spelled = "".join(x for x in unicodedata.normalize("NFD", spelled) if unicodedata.category(x) != "Mn")
        assert "".join(tokenizer.decode(ids).split()) == spelled
    kept.save(tmp_path / "t")
    for path in (tmp_path / "t", tmp_path / "t" / "vocab.txt"):  # the vocabulary alone says nothing of accents
        assert tokenizers_load.from_file(path).sha256 == kept.sha256
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizer(vocab=str(tmp_path / "t" / "vocab.txt"), strip_accents=False)
    assert kept.encode_batch([text]) == [theirs(text, add_special_tokens=False)["input_ids"]]
    files.write(tmp_path / "hf", kept.files())
    for load in (transformers.AutoTokenizer, transformers.BertTokenizer):
        theirs = load.from_pretrained(tmp_path / "hf")
        assert kept.encode_batch([text]) == [theirs(text, add_special_tokens=False)["input_ids"]]


def test_chinese_in_words_and_the_key_of_what_was_trained_before(tmp_path: Path) -> None:
    options = {"train_source_documents": lambda: iter([["日本 日本 語"] * 5]), "cache": tmp_path, "fingerprint": "f1"}
    words = tokenizers_load.load(WordPieceConfig(tokenize_chinese_chars=False), tmp_path, vocab_size=120, **options)
    single = tokenizers_load.load(WordPieceConfig(), tmp_path, vocab_size=120, **options)
    assert "日本" in words.pieces and "日本" not in single.pieces
    recipe = [1, tokenizers.__version__, 120, True, 2, "f1"]  # without the options that came later
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:24]
    assert tokenizers_load.from_file(tmp_path / "tokenizers" / key).sha256 == single.sha256


def test_a_copy_in_another_process_reads_text_alike(tmp_path: Path) -> None:
    """Workers get the tokenizer by pickle, which the library does without `encode_special_tokens`."""
    tokenizer = tokenizers_load.from_file(vocab_file(tmp_path, VOCAB + ["[", "]", "mask"]))
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode_batch(["the [MASK]"]) == tokenizer.encode_batch(["the [MASK]"])
    assert again.sha256 == tokenizer.sha256 and again.mask_id not in again.encode_batch(["[MASK]"])[0]


def test_load_without_a_fingerprint_keys_by_the_text(tmp_path: Path) -> None:
    for text in (SENTENCES, SENTENCES, SENTENCES[:2]):
        tokenizers_load.load(
            WordPieceConfig(),
            tmp_path,
            vocab_size=160,
            train_source_documents=lambda text=text: iter([text]),
            cache=tmp_path,
        )
    assert len(list((tmp_path / "tokenizers").iterdir())) == 2


def test_load_reads_a_path_relative_to_the_config(tmp_path: Path) -> None:
    vocab_file(tmp_path)
    config = WordPieceConfig(path="vocab.txt")
    tokenizer = tokenizers_load.load(
        config, tmp_path, vocab_size=99, train_source_documents=None, cache=tmp_path / "cache"
    )
    assert tokenizer.pieces == VOCAB and not (tmp_path / "cache").exists()


def _json(change) -> str:
    state = json.loads(trained().backend.to_str())
    change(state)
    return json.dumps(state)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n", r"no \[MASK\]"),
        ("vocab.txt", "", "is empty"),
        ("vocab.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("tokenizer.json", "{not json", "not valid JSON"),
        ("tokenizer.json", "[1, 2]", "no tokenizer.json"),
        ("tokenizer.json", '{"model": {"type": "BPE"}}', "is a BPE tokenizer"),
        ("tokenizer.json", '{"model": {"type": "WordPiece"}}', "cannot read it"),
    ],
)
def test_bad_files_are_one_line_errors(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=says) as caught:
        tokenizers_load.from_file(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and ";" in message and len(message) <= 300


def test_ids_without_a_piece(tmp_path: Path, capsys) -> None:
    """An id is the number of a line: transformers lets the last of two equal lines hold, and keeps a blank one."""
    transformers = pytest.importorskip("transformers")
    for name, pieces, says in (
        ("twice", VOCAB + ["the", "wa"], "id 8 and 1 more has no piece"),
        ("blank", VOCAB[:6] + [""] + VOCAB[6:], "id 6 is a blank line"),
    ):
        (tmp_path / name).mkdir()
        path = vocab_file(tmp_path / name, pieces)
        tokenizer = tokenizers_load.from_file(path)
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line and line.startswith(f"note: {path}: ")
        theirs = transformers.BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})
        texts = ["the wanted", "unwanted, running wa"]
        assert tokenizer.encode_batch(texts) == theirs(texts, add_special_tokens=False)["input_ids"]
        assert tokenizer.vocab_size == len(pieces) == len(tokenizer.pieces) == len(set(tokenizer.pieces))
        tokenizer.save(tmp_path / name / "saved")
        assert tokenizers_load.from_file(tmp_path / name / "saved").sha256 == tokenizer.sha256
        assert len((tmp_path / name / "saved" / "vocab.txt").read_text().splitlines()) == len(pieces)
    (tmp_path / "tokenizer.json").write_text(_json(lambda s: s["model"]["vocab"].update({"gap": 5000})))
    assert (
        tokenizers_load.from_file(tmp_path).vocab_size == 5001
    )  # more than a model has rows for, which is said with numbers


def test_missing_files_and_bad_options(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "no.txt", "no such file"), (tmp_path, "holds neither")):
        with pytest.raises(UserError, match=says):
            tokenizers_load.from_file(path)
    with pytest.raises(UserError, match="too small"):
        trained(vocab_size=50)
    with pytest.raises(UserError, match="no words"):
        tokenizers_load.train(lambda: iter([["  "]]), vocab_size=200, lowercase=True)
    with pytest.raises(UserError, match="tokenizer.path or tokenizer.train_on"):
        tokenizers_load.load(WordPieceConfig(), tmp_path, vocab_size=200, train_source_documents=None, cache=tmp_path)
    state = _json(lambda s: s["model"]["vocab"].pop("[MASK]"))
    assert "[MASK]" in state  # the added token stays: the library gives it an id of its own


def test_parity_with_transformers(shared_data: Path, tmp_path: Path) -> None:
    """BertTokenizerFast over bert-base-uncased's vocabulary and real text; ids are equal piece by piece."""
    import lzma

    transformers = pytest.importorskip("transformers")
    path = shared_data / "vocab" / "bert-base-uncased-vocab.txt"
    theirs = transformers.BertTokenizerFast(vocab=str(path), do_lower_case=True)
    tokenizer = tokenizers_load.from_file(path)
    assert (tokenizer.vocab_size, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (30522, 101, 102, 103)
    texts = []
    for name in ("wikipedia_squad_train", "eltec-eng.valid"):
        with lzma.open(shared_data / "text" / f"{name}.jsonl.xz", "rt") as file:
            texts += [json.loads(next(file))["text"][:20000] for _ in range(8)]
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    assert sum(map(len, expected)) > 30_000
    assert tokenizer.encode_batch(texts) == expected


def test_loads_where_there_is_neither_network_nor_transformers(tmp_path: Path) -> None:
    vocab_file(tmp_path)
    code = (
        "import sys; sys.modules['transformers'] = None; import socket; socket.socket = None\n"
        "from bertjax.data.tokenizers import load as t\n"
        f"print(t.from_file({str(tmp_path)!r}).vocab_size, 'jax' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == [str(len(VOCAB)), "False"]
