"""SentencePiece: the same bytes on every training, T5's sentinels, parity with transformers, and one-line errors."""

import base64
import hashlib
import io
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.config.schema.data import SentencePieceConfig, WordPieceConfig
from bertjax.data.tokenizers import load as tokenizers_load
from bertjax.data.tokenizers import wordpiece
from bertjax.data.tokenizers.sentencepiece import SentencePieceTokenizer, train
from bertjax.data.tokenizers.unigram_formats import spm_proto
from bertjax.data.tokenizers.unigram_formats.spm_proto import CONTROL, UNKNOWN, Model, Piece
from bertjax.errors import UserError

SENTENCES = [
    "The cat sat on the mat and the dog sat beside the cat.",
    "Unaffable people are seldom affable: café, naïve, Straße!",
    "Tokenization of tokens tokenizes the tokenizer's tokens.",
    "Zebras quickly jump over 13 lazy dogs; why?",
    "Pack my box with five dozen liquor jugs, said the quick brown fox.",
]
TEXTS = [
    *SENTENCES, "", " ", "  two   spaces ", "ﬁne ½ ①  full－width", "日本 unknown", "a\tb\nc", "<unk> and <pad>",
    "jugs</s>jugs", "quick brown <mask> fox", "\u200bzero width", "e\u0301 composed", "The" * 50,
]  # fmt: skip
PIECES, EXTRA = 80, 100


def documents() -> Iterator[list[str]]:
    return iter([SENTENCES * 5, ["The mat, the mat."] * 5])


def trained(**options) -> SentencePieceTokenizer:
    defaults = {"vocab_size": PIECES + EXTRA, "extra_ids": EXTRA, "character_coverage": 1.0}
    return train(documents, **(defaults | options))


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return trained()


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("spm")
    tokenizer.save(out)
    return out


def test_layout_is_t5s(tokenizer):
    assert tokenizer.pieces[:3] == ["<pad>", "</s>", "<unk>"]
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2)
    assert tokenizer.vocab_size == len(tokenizer.pieces) == PIECES + EXTRA
    assert tokenizer.pieces[-1] == "<extra_id_0>" and tokenizer.pieces[PIECES] == "<extra_id_99>"
    assert [tokenizer.pieces[tokenizer.sentinel_id(i)] for i in (0, 7, 99)] == [
        "<extra_id_0>",
        "<extra_id_7>",
        "<extra_id_99>",
    ]
    for number in (-1, 100):
        with pytest.raises(UserError, match="there are 100 sentinels"):
            tokenizer.sentinel_id(number)


def test_sentinels_of_the_released_vocabulary():
    """32000 pieces and 100 extra ids: <extra_id_0> is 32099 (t5.data.sentinel_id, transformers' T5Tokenizer)."""
    pieces = [Piece("<pad>", 0.0, CONTROL), Piece("</s>", 0.0, CONTROL), Piece("<unk>", 0.0, UNKNOWN)]
    pieces += [Piece(f"p{number}", -1.0) for number in range(3, 32000)]
    model = Model(tuple(pieces), b"", {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"})
    found = SentencePieceTokenizer(spm_proto.write(model), 100, "made up")
    assert (found.vocab_size, found.sentinel_id(0), found.sentinel_id(99)) == (32100, 32099, 32000)


SCRIPT = """
import sys; sys.path.insert(0, {here!r})
import hashlib, test_sentencepiece as t
print(hashlib.sha256(t.trained().model).hexdigest())
"""


def test_training_gives_the_same_bytes_in_every_process(tokenizer):
    script = SCRIPT.format(here=str(Path(__file__).parent))
    other = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert other.stdout.strip() == hashlib.sha256(tokenizer.model).hexdigest()
    assert trained().model == tokenizer.model
    assert other.stderr == ""  # sentencepiece's log stays quiet


def test_training_spells_what_it_saw_and_keeps_long_documents():
    long = " ".join(SENTENCES) + " ψ" + " The cat sat." * 500  # beyond the trainer's usual 4192 bytes
    found = train(lambda: iter([[long]]), vocab_size=120, extra_ids=0, character_coverage=1.0)
    assert all(found.unk_id not in ids for ids in found.encode_batch([*SENTENCES, "ψ"]))
    assert found.sha256 != trained().sha256


def test_more_pieces_than_the_text_has():
    assert trained(vocab_size=5000).vocab_size < 5000


@pytest.mark.parametrize("size", [20, 101, 125])
def test_a_vocabulary_too_small_for_the_letters(size):
    with pytest.raises(UserError, match=r"^tokenizer.vocab_size: no SentencePiece model") as error:
        trained(vocab_size=size)
    assert "\n" not in str(error.value)


def test_prompts_and_labels_can_be_written_whatever_the_text():
    """An English text without an underscore would leave GLUE's `not_equivalent` unreadable, and every answer wrong."""
    labels = ["not_equivalent", "acceptable", "mrpc sentence1: a (b) [c] {d} <e> #1 50% ~ `f` ^|\\@$&*+="]
    tokenizer = trained(vocab_size=5000)
    ids = tokenizer.encode_batch(labels)
    assert all(tokenizer.unk_id not in row for row in ids) and [tokenizer.decode(row) for row in ids] == labels


def test_a_text_without_words():
    with pytest.raises(UserError, match="more text"):
        train(lambda: iter([[]]), vocab_size=200, extra_ids=10, character_coverage=1.0)


def seqios(model: bytes, extra_ids: int) -> sentencepiece.SentencePieceProcessor:
    """seqio.SentencePieceVocabulary (vocabularies.py `_load_model`): user-defined pieces '▁<extra_id_N>', backwards.

    A piece in sentencepiece_model.proto: field 1 of ModelProto; in it text (1), score 0.0 (2), type USER_DEFINED (3).
    """
    for number in reversed(range(extra_ids)):
        text = f"▁<extra_id_{number}>".encode()
        piece = b"\x0a" + bytes([len(text)]) + text + b"\x15" + bytes(4) + b"\x18\x04"
        model += b"\x0a" + bytes([len(piece)]) + piece
    return sentencepiece.SentencePieceProcessor(model_proto=model)


SENTINEL_TEXTS = [
    "<extra_id_0>", "the <extra_id_1> cat </s> <pad>", "</s>", "▁<extra_id_0>", "<pad>", "<extra_id_0> the cat",
    "<extra_id_0>the cat", "the<extra_id_0> cat", "the<extra_id_0>cat", "the cat<extra_id_0>", "a <extra_id_99>b",
    "<extra_id_0><extra_id_1>", "<extra_id_0> <extra_id_1>", "the <extra_id_100> cat", "<extra_id_00>", "<extra_id_>",
    " <extra_id_5> ", "jugs\t<extra_id_3>\njugs", "  <extra_id_0>  the", "extra_id_0", "< extra_id_0>", "<EXTRA_ID_0>",
    "the <extra_id_1>", "dog <extra_id_12>s", "<extra_id_1> <extra_id_1> <extra_id_1>", "<extra_id_0>.",
    "(<extra_id_0>)",
    "ﬁne <extra_id_7> ½", "quick <extra_id_10>0 fox", "日本 <extra_id_4>本",
]  # fmt: skip


def test_text_with_sentinels_is_read_as_seqio_reads_it(tokenizer):
    theirs = seqios(tokenizer.model, EXTRA)
    for text, ids in zip(SENTINEL_TEXTS + TEXTS, tokenizer.encode_batch(SENTINEL_TEXTS + TEXTS), strict=True):
        assert ids == theirs.encode(text), text
        assert tokenizer.decode(ids) == theirs.decode(ids), text
    glued, spaced = tokenizer.encode_batch(["<extra_id_0>cat", "<extra_id_0> cat"])
    assert glued[0] == spaced[0] == tokenizer.sentinel_id(0) and glued[1:] != spaced[1:]


def test_text_never_makes_a_control_piece(tokenizer):
    for text, ids in zip(SENTINEL_TEXTS, tokenizer.encode_batch(SENTINEL_TEXTS), strict=True):
        assert ids and not {tokenizer.pad_id, tokenizer.eos_id} & set(ids), text


def test_decoding_renders_sentinels_as_seqio_does(tokenizer):
    """As seqio's vocabulary, whose sentinels are pieces with a space before them: '▁<extra_id_0>'."""
    the, cat = (tokenizer.encode_batch([word])[0] for word in ("the", "cat"))
    suffix = [i for i, piece in enumerate(tokenizer.pieces) if piece == "s"]
    zero, one = tokenizer.sentinel_id(0), tokenizer.sentinel_id(1)
    assert tokenizer.decode([zero, *the, one, *cat, 1, 0, 0]) == "<extra_id_0> the <extra_id_1> cat"
    assert tokenizer.decode([*the, zero, *suffix, one]) == "the <extra_id_0>s <extra_id_1>"
    assert tokenizer.decode([0, 1]) == tokenizer.decode([]) == ""
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == tokenizer.decode([2]) == " ⁇ "


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(alphabet="abcdefghij klmno,.T" + "\u00e9\u2581<>", max_size=30), max_size=5))
def test_ids_are_in_range_and_decoding_is_stable(texts):
    found = trained()
    for ids in found.encode_batch(texts):
        assert all(0 < i < PIECES for i in ids)
        if found.unk_id not in ids:
            assert found.encode_batch([found.decode(ids)]) == [ids] or "  " in found.decode(ids)


def test_it_pickles_and_its_json_is_read_back(tokenizer):
    for other in (pickle.loads(pickle.dumps(tokenizer)), tokenizers_load.from_json(tokenizer.json, "meta")):
        assert (other.sha256, other.pieces, other.extra_ids) == (tokenizer.sha256, tokenizer.pieces, EXTRA)
        assert other.model == tokenizer.model and other.json == tokenizer.json
        assert other.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)


def test_every_file_gives_the_same_tokenizer(tokenizer, folder, tmp_path):
    for path in (folder, folder / "spiece.model", folder / "tokenizer.json"):
        other = tokenizers_load.from_file(path)
        assert (other.sha256, other.pieces) == (tokenizer.sha256, tokenizer.pieces), path
        assert other.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())  # alone
    assert tokenizers_load.from_file(tmp_path).sha256 == tokenizer.sha256
    (tmp_path / "a.model").write_bytes(tokenizer.model)
    assert tokenizers_load.from_file(tmp_path / "a.model", extra_ids=7).extra_ids == 7


def test_sentinels_inside_a_model_are_counted(tokenizer):
    """Models saved by seqio list them as pieces '▁<extra_id_N>'."""
    model = spm_proto.read(tokenizer.model)
    inside = tuple(Piece(f"▁<extra_id_{number}>", 0.0, spm_proto.USER_DEFINED) for number in reversed(range(5)))
    found = SentencePieceTokenizer(spm_proto.write(replace(model, pieces=model.pieces + inside)), 100, "model")
    assert (found.extra_ids, found.vocab_size, found.sentinel_id(0)) == (5, PIECES + 5, PIECES + 4)
    text = tokenizer.encode_batch(["a"])[0]
    assert found.encode_batch(["a <extra_id_0>"]) == [[*text, PIECES + 4]]


# ---- transformers ---------------------------------------------------------------------------------------------------


def assert_same_as_transformers(ours: SentencePieceTokenizer, theirs, texts: list[str]) -> None:
    assert len(theirs) == ours.vocab_size
    assert theirs.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_99>"]) == [
        ours.sentinel_id(0),
        ours.sentinel_id(99),
    ]
    assert (theirs.eos_token_id, theirs.unk_token_id) == (ours.eos_id, ours.unk_id)
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        assert theirs(text).input_ids == [*ids, ours.eos_id], text


@pytest.mark.parametrize("name", ["spiece.model alone", "everything"])
def test_transformers_reads_the_same_ids(tokenizer, folder, tmp_path, name):
    transformers = pytest.importorskip("transformers")
    if name != "everything":
        (tmp_path / "spiece.model").write_bytes(tokenizer.model)
        folder = tmp_path
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    plain = [text for text in TEXTS if "</s>" not in text and "<unk>" not in text]  # theirs are special tokens there
    for load in (transformers.AutoTokenizer, transformers.T5Tokenizer):
        theirs = load.from_pretrained(folder)
        assert_same_as_transformers(tokenizer, theirs, plain)
        assert theirs.pad_token_id == 0
        assert tokenizer.sentinel_id(0) in theirs("the <extra_id_0> cat").input_ids  # what HF does and we do not


def test_a_folder_saved_by_transformers(tokenizer, folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.T5Tokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert not (tmp_path / "spiece.model").exists()
    ours = tokenizers_load.from_file(tmp_path)
    assert ours.pieces == tokenizer.pieces and ours.behavior == tokenizer.behavior  # weights fit both
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode_batch(TEXTS) == theirs(TEXTS, add_special_tokens=False)["input_ids"]


def real_text(shared_data: Path) -> list[str]:
    lines = (shared_data / "text" / "bert_sample_text.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip()]


def test_seqios_vocabulary(shared_data):
    """seqio/vocabularies_test.py: 'this is a test' of test_data/sentencepiece (26 pieces)."""
    ours = tokenizers_load.from_file(shared_data / "vocab" / "seqio_test_sentencepiece_26.model", extra_ids=10)
    assert ours.encode_batch(["this is a test"]) == [[11, 8, 6, 3, 8, 6, 3, 5, 10]]
    assert ours.decode([11, 8, 6, 3, 8, 6, 3, 5, 10]) == "this is a test"
    assert (ours.vocab_size, ours.eos_id, ours.pad_id, ours.unk_id) == (36, 1, 0, 2)


def test_a_model_without_padding_keeps_its_own_ids(shared_data, tmp_path):
    """32768 pieces of C4: <unk> 0, <s> 1, </s> 2 and no <pad>; as in seqio padding is 0 all the same."""
    transformers = pytest.importorskip("transformers")
    ours = tokenizers_load.from_file(shared_data / "vocab" / "c4_unigram_32768.spm.model")
    assert (ours.pad_id, ours.eos_id, ours.unk_id, ours.vocab_size) == (0, 2, 0, 32868)
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert_same_as_transformers(ours, theirs, real_text(shared_data))
    again = tokenizers_load.from_file(tmp_path / "tokenizer.json")
    assert again.sha256 == ours.sha256 and again.encode_batch(["café"]) == ours.encode_batch(["café"])
    assert ours.decode(ours.encode_batch(["It was a bright cold day."])[0]) == "It was a bright cold day."


def test_real_text_as_transformers(shared_data, tmp_path):
    transformers = pytest.importorskip("transformers")
    lines = real_text(shared_data)
    ours = train(lambda: iter([lines]), vocab_size=500, extra_ids=100, character_coverage=0.9995)
    ours.save(tmp_path)
    assert_same_as_transformers(ours, transformers.AutoTokenizer.from_pretrained(tmp_path), lines)


# ---- from a configuration -------------------------------------------------------------------------------------------


def load(config, tmp_path: Path, source=documents):
    return tokenizers_load.load(
        config, tmp_path, vocab_size=180, train_source_documents=source, cache=tmp_path / "cache"
    )


def test_a_trained_one_is_kept(tokenizer, tmp_path):
    config = SentencePieceConfig(kind="sentencepiece", character_coverage=1.0)
    first = load(config, tmp_path)
    assert first.sha256 == tokenizer.sha256
    kept = list((tmp_path / "cache" / "tokenizers").iterdir())
    before = (kept[0] / "spiece.model").stat().st_mtime_ns
    assert load(config, tmp_path).sha256 == first.sha256
    assert (kept[0] / "spiece.model").stat().st_mtime_ns == before
    for changed in ({"extra_ids": 90}, {"vocab_size": 200}, {"character_coverage": 0.99}):
        load(SentencePieceConfig(**({"kind": "sentencepiece", "character_coverage": 1.0} | changed)), tmp_path)
    assert len(list((tmp_path / "cache" / "tokenizers").iterdir())) == 4


def test_path_and_kind(tokenizer, folder, tmp_path):
    config = SentencePieceConfig(kind="sentencepiece", path=str(folder), extra_ids=3)
    assert load(config, tmp_path, None).extra_ids == EXTRA  # the folder says so itself
    (tmp_path / "my.model").write_bytes(tokenizer.model)
    config = SentencePieceConfig(kind="sentencepiece", path=str(tmp_path / "my.model"), extra_ids=3)
    assert load(config, tmp_path, None).vocab_size == PIECES + 3
    with pytest.raises(UserError, match="is a SentencePiece tokenizer; tokenizer.kind is wordpiece"):
        load(WordPieceConfig(path=str(folder)), tmp_path, None)
    (tmp_path / "vocab.txt").write_text("\n".join(wordpiece.SPECIAL_TOKENS) + "\n")
    with pytest.raises(UserError, match="is a WordPiece tokenizer; tokenizer.kind is sentencepiece"):
        load(SentencePieceConfig(kind="sentencepiece", path=str(tmp_path / "vocab.txt")), tmp_path, None)
    with pytest.raises(UserError, match="neither 'path' nor text"):
        load(SentencePieceConfig(kind="sentencepiece"), tmp_path, None)


# ---- what is refused ------------------------------------------------------------------------------------------------


def refused(path: Path, mentions: str) -> None:
    with pytest.raises(UserError, match=mentions) as error:
        tokenizers_load.from_file(path)
    assert "\n" not in str(error.value) and str(path.parent) in str(error.value)


@pytest.mark.parametrize(
    ("content", "mentions"),
    [
        (b"", "empty"),
        (b"no model", "not a SentencePiece model"),
        (b"\x0a\x03abc", "not a SentencePiece model"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b'{"model": {}}', "not a SentencePiece model"),
    ],
)
def test_files_that_are_no_models(tmp_path, content, mentions):
    (tmp_path / "spiece.model").write_bytes(content)
    refused(tmp_path / "spiece.model", mentions)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_a_truncated_model(tokenizer, tmp_path, keep):
    (tmp_path / "spiece.model").write_bytes(tokenizer.model[: int(len(tokenizer.model) * keep)])
    refused(tmp_path / "spiece.model", "spiece.model: ")


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        ({"model_type": "bpe"}, "model_type is not UNIGRAM"),
        ({"byte_fallback": True, "vocab_size": 330}, "byte_fallback is on"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix is on"),
        ({"add_dummy_prefix": False}, "add_dummy_prefix is off"),
        ({"remove_extra_whitespaces": False}, "remove_extra_whitespaces is off"),
        ({"eos_id": -1}, "no </s>"),
        ({"unk_id": 0, "pad_id": 2}, "id 0 is the piece"),
        ({"user_defined_symbols": ["<extra_id_5>"]}, "not the last pieces"),
    ],
)
def test_models_of_other_kinds(tmp_path, options, mentions):
    writer = io.BytesIO()
    usual = {"vocab_size": 70, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 5), model_writer=writer, hard_vocab_limit=False, **(usual | options)
    )
    (tmp_path / "spiece.model").write_bytes(writer.getvalue())
    refused(tmp_path / "spiece.model", mentions)


def test_the_file_is_read_as_the_library_reads_it(shared_data, tokenizer):
    path = shared_data / "vocab" / "c4_unigram_32768.spm.model"
    for content in (path.read_bytes(), tokenizer.model, spm_proto.write(spm_proto.read(tokenizer.model))):
        library, model = sentencepiece.SentencePieceProcessor(model_proto=content), spm_proto.read(content)
        ids = list(range(library.get_piece_size()))
        assert [piece.text for piece in model.pieces] == library.id_to_piece(ids)
        assert [piece.score for piece in model.pieces] == library.get_score(ids)
        for kind, those in ((CONTROL, library.is_control(ids)), (UNKNOWN, library.is_unknown(ids))):
            assert [piece.kind == kind for piece in model.pieces] == those
        assert model.charsmap and not model.unsupported


@given(st.binary(max_size=60))
def test_any_bytes_are_a_model_or_a_user_error(content):
    with pytest.raises(UserError, match="^file: "):
        SentencePieceTokenizer(content, 100, "file")


@pytest.mark.parametrize(
    "extra", ['{"extra_ids": -1}', '{"extra_ids": "many"}', '{"extra_ids": true}', "[]", "nothing"]
)
def test_a_config_beside_it_that_is_wrong(tokenizer, tmp_path, extra):
    (tmp_path / "spiece.model").write_bytes(tokenizer.model)
    (tmp_path / "tokenizer_config.json").write_text(extra)
    with pytest.raises(UserError, match=r"tokenizer_config.json: (not a JSON object|extra_ids must be)"):
        tokenizers_load.from_file(tmp_path)


@pytest.mark.parametrize(
    ("where", "value", "mentions"),
    [
        (("normalizer",), {"type": "Lowercase"}, "normalizer 'Lowercase'"),
        (("pre_tokenizer",), {"type": "Whitespace"}, "pre_tokenizer Whitespace"),
        (("pre_tokenizer",), None, "pre_tokenizer none"),
        (("model", "unk_id"), None, "no unk_id"),
        (("model", "byte_fallback"), True, "byte_fallback"),
        (("model", "vocab"), [], "cannot read it|no unk_id|not a"),
        (("model", "vocab"), [["a", "b"]], "cannot read it"),
    ],
)
def test_a_tokenizer_json_of_another_kind(folder, tmp_path, where, value, mentions):
    state = json.loads((folder / "tokenizer.json").read_text())
    inner = state
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    refused(tmp_path / "tokenizer.json", mentions)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"extra_ids": 100},
        {"extra_ids": -1, "model": ""},
        {"extra_ids": 3, "model": "***"},
        {"extra_ids": 3, "model": 4},
        {"extra_ids": 3, "model": base64.b64encode(b"nothing").decode()},
    ],
)
def test_a_damaged_text_in_a_checkpoint(state):
    with pytest.raises(UserError, match=r"^meta: not a SentencePiece") as error:
        tokenizers_load.from_json(json.dumps({"type": "sentencepiece"} | state), "meta")
    assert "\n" not in str(error.value)
