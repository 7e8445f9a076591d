"""Folders of other tools: ids are those of transformers' AutoTokenizer on the same folder, for every setting."""

import json
import pickle
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import tokenizers as rust
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bertjax.config.schema.data import BertPairs, SentencePieceConfig, WordPieceConfig
from bertjax.data.preprocess import bert_pairs
from bertjax.data.preprocess.masking import MaskingRules
from bertjax.data.tokenizers import backend_state, huggingface, sentencepiece, wordpiece
from bertjax.data.tokenizers import load as tokenizers_load
from bertjax.data.tokenizers.load import Tokenizer
from bertjax.errors import UserError

ENT, COL = "<ent>", "<col>"
TEXTS = [
    "",
    " ",
    "The cat sat on the mat, and the dog sat beside the cat!",
    "UNaffable PEOPLE are seldom affable; don't you think?",
    "Café, naïve, Straße, façade, Ångström",
    unicodedata.normalize("NFD", "Café, naïve, Straße, façade, Ångström"),
    "Größe und Maß für Übermut",
    unicodedata.normalize("NFD", "Tiếng Việt rất đẹp"),
    "Tiếng Việt rất đẹp, ƯỚC MƠ",
    "日本語とEnglishの混合文。",
    "中文没有空格，標點符號！",
    "ภาษาไทยไม่มีช่องว่าง",
    "हिन्दी में लिखा हुआ वाक्य।",
    "اللغة العربية جميلة، أليس كذلك؟",
    "emoji 😀👩‍👩‍👧 and flags 🇩🇪",
    "zero\u200bwidth\u200djoin\ufeff and soft\u00adhyphen",
    "tabs\tand\nnew lines\r\n  many   spaces  ",
    "no\u00a0break and line\u2028separator",
    "a" * 101,
    "a" * 150 + " b",
    "a" * 201 + " end",
    "control \x00\x01\x7f characters \ufffd here",
    "The [MASK] sat [SEP] on [CLS] a [PAD] and [UNK].",
    "[MASK][MASK] x[MASK]y [mask] <mask> <s> </s> <pad> <unk>",
    f"x{ENT}y {ENT} z,{ENT}. {ENT.upper()}",
    f"{COL}a {COL} b\nc{COL}\n",
    "1234567890 3.14 $5 #tag @name user@example.com",
    "snake_case CamelCase kebab-case",
    "“quotes” – dashes — ellipsis… ½ ﬁ ﬂ ™",
    "<extra_id_0>the cat <extra_id_1> x<extra_id_0>",
    "ß ẞ İ ı ſ K Å",
    "The.cat.sat" * 5,
]
ROLES = ("pad", "unk", "cls", "sep", "mask")
SPECIALS = [f"[{role.upper()}]" for role in ROLES]
OTHERS = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
_LETTERS = sorted({c for t in TEXTS for form in (t, t.upper(), t.lower()) for n in ("NFC", "NFD")
                   for c in unicodedata.normalize(n, form) if not c.isspace()})  # fmt: skip
VOCAB = [*SPECIALS, *_LETTERS, *("##" + c for c in _LETTERS), "the", "The", "cat", "##at", "café", "cafe", "mask"]
BERT = {"model_type": "bert", "vocab_size": len(VOCAB) + 8}
T5 = {"model_type": "t5", "vocab_size": 600}

transformers = pytest.importorskip("transformers")


def lines(pieces: list[str]) -> str:
    return "".join(f"{piece}\n" for piece in pieces)


def added(*tokens: str, first: int = len(VOCAB), **changes) -> dict:
    """`added_tokens_decoder` of tokenizer_config.json."""
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": False}
    return {str(first + i): {"content": token, **plain, **changes} for i, token in enumerate(tokens)}


def roles(names: list[str]) -> dict[str, str]:
    return {f"{role}_token": name for role, name in zip(ROLES, names, strict=True)}


def put(folder: Path, files: dict) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def theirs(folder: Path) -> list[list[int]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer(TEXTS, add_special_tokens=False)["input_ids"]


def check(folder: Path, tmp_path: Path):
    """Ids, kept JSON, a saved folder and transformers on that folder agree; -> our tokenizer."""
    expected, ours = theirs(folder), tokenizers_load.from_file(folder)
    for text, one, other in zip(TEXTS, ours.encode_batch(TEXTS), expected, strict=True):
        assert one == other, text
    for again in (tokenizers_load.from_json(ours.json, "kept"), pickle.loads(pickle.dumps(ours))):
        assert again.sha256 == ours.sha256 and again.encode_batch(TEXTS) == expected
    ours.save(tmp_path / "saved")
    again = tokenizers_load.from_file(tmp_path / "saved")
    assert again.sha256 == ours.sha256 and again.encode_batch(TEXTS) == expected
    assert theirs(tmp_path / "saved") == expected
    return ours


def wordpiece_json(vocab: list[str] = VOCAB, **options) -> str:
    return wordpiece.build_wordpiece(
        {piece: i for i, piece in enumerate(vocab)}, **{"lowercase": False} | options
    ).to_str()


def padded(state: str) -> str:
    backend = rust.Tokenizer.from_str(state)
    backend.enable_padding(length=8)
    backend.enable_truncation(3)
    return backend.to_str()


CUSTOM = lines([*OTHERS, *VOCAB[5:]])
BERTS = {
    "config.json alone": {},
    "cased": {"tokenizer_config.json": {"do_lower_case": False}},
    "accents kept": {"tokenizer_config.json": {"strip_accents": False}},
    "accents stripped, cased": {"tokenizer_config.json": {"do_lower_case": False, "strip_accents": True}},
    "chinese in words": {"tokenizer_config.json": {"tokenize_chinese_chars": False}},
    "class of old": {"tokenizer_config.json": {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False}},
    "never_split": {"tokenizer_config.json": {"never_split": ["cat"], "do_basic_tokenize": False}},
    "added_tokens.json": {"added_tokens.json": {ENT: len(VOCAB), COL: len(VOCAB) + 1}},
    "added, plain": {"tokenizer_config.json": {"added_tokens_decoder": added(ENT, COL)}},
    "added, normalized": {"tokenizer_config.json": {"added_tokens_decoder": added(ENT, COL, normalized=True)}},
    "added, special": {"tokenizer_config.json": {"added_tokens_decoder": added(ENT, COL, special=True)}},
    "added, stripping": {"tokenizer_config.json": {"added_tokens_decoder": added(ENT, COL, lstrip=True, rstrip=True)}},
    "added, single words": {"tokenizer_config.json": {"added_tokens_decoder": added(ENT, "sat", single_word=True)}},
    "additional special": {"special_tokens_map.json": {"additional_special_tokens": [ENT, COL]}},
    "custom special tokens": {"vocab.txt": CUSTOM, "tokenizer_config.json": roles(OTHERS)},
    "custom, in the map": {"vocab.txt": CUSTOM, "special_tokens_map.json": roles(OTHERS)},
    "split special tokens": {"tokenizer_config.json": {"split_special_tokens": True}},
    "repeated line": {"vocab.txt": lines([*VOCAB, "the", "zz"])},
    "blank line": {"vocab.txt": lines([*VOCAB[:200], "", *VOCAB[200:]])},
    "CRLF": {"vocab.txt": lines(VOCAB).replace("\n", "\r\n")},
    "spaces behind pieces": {"vocab.txt": lines(VOCAB).replace("\nthe\n", "\nthe \n")},
    "byte-order mark": {"vocab.txt": "\ufeff" + lines(VOCAB)},
    "short model_max_length": {"tokenizer_config.json": {"model_max_length": 4, "padding_side": "left"}},
    "distilbert": {"config.json": BERT | {"model_type": "distilbert"}, "special_tokens_map.json": roles(SPECIALS)},
    "json": {"tokenizer.json": wordpiece_json(), "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast",
                                                                           **roles(SPECIALS)}},
    "json against config": {"tokenizer.json": wordpiece_json(), "tokenizer_config.json": {"do_lower_case": True}},
    "json, padded and cut": {"tokenizer.json": padded(wordpiece_json(lowercase=True))},
    "json without config": {"tokenizer.json": wordpiece_json(strip_accents=False)},
}  # fmt: skip


@pytest.mark.parametrize("name", BERTS)
def test_every_setting_of_a_bert_folder(name, tmp_path, capsys):
    files = {"config.json": BERT, "vocab.txt": lines(VOCAB)} | BERTS[name]
    ours = check(put(tmp_path / "hf", files), tmp_path)
    assert isinstance(ours, Tokenizer) and ours.mask_id is not None
    assert "writes two texts" not in capsys.readouterr().err
    assert ours.marks_words and len(ours.is_continuation) == ours.vocab_size == len(ours.pieces)


def test_one_file_is_read_with_the_settings_beside_it(tmp_path):
    """The file that is named, not the tokenizer.json beside it; a file alone needs no transformers."""
    other = wordpiece_json([*SPECIALS, "zz"])
    settings = {"strip_accents": False, "added_tokens_decoder": added(ENT)}
    folder = put(tmp_path / "hf", {"vocab.txt": lines(VOCAB), "tokenizer_config.json": settings})
    expected = theirs(put(folder, {"config.json": BERT}))
    put(folder, {"tokenizer.json": other})
    assert tokenizers_load.from_file(folder / "vocab.txt").encode_batch(TEXTS) == expected
    (folder / "config.json").unlink()  # no class is named: BERT's, as the file's name says
    assert tokenizers_load.from_file(folder / "vocab.txt").encode_batch(TEXTS) == expected
    (folder / "tokenizer_config.json").unlink()
    put(folder, {"config.json": {"of": "something else"}})
    assert tokenizers_load.from_file(folder / "vocab.txt").special.is_native


def test_options_hold_where_the_files_say_nothing(tmp_path, capsys):
    folder = put(tmp_path / "hf", {"config.json": BERT, "vocab.txt": lines(VOCAB)})
    options = {"lowercase": False, "strip_accents": True, "tokenize_chinese_chars": False}
    ours = tokenizers_load.from_file(folder, **options)
    named = {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False}
    expected = transformers.AutoTokenizer.from_pretrained(folder, **named)(TEXTS, add_special_tokens=False)["input_ids"]
    assert ours.encode_batch(TEXTS) == expected
    put(folder, {"tokenizer_config.json": {"do_lower_case": True}})

    def load(**options):
        config = WordPieceConfig(path="hf", **options)
        return tokenizers_load.load(config, tmp_path, vocab_size=9, train_source_documents=None, cache=tmp_path)

    capsys.readouterr()
    assert load(lowercase=False).lowercase and load(lowercase=False, strip_accents=False).lowercase
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "its files say True where tokenizer.lowercase is False" in said[0]
    assert load(lowercase=True).lowercase and not capsys.readouterr().err


def test_what_transformers_decides_is_said_once(tmp_path, capsys):
    files = {"config.json": BERT, "vocab.txt": lines([*VOCAB, "the"]), "tokenizer.json": wordpiece_json()}
    for name, beside, says in (
        ("one", {"tokenizer_config.json": {"do_lower_case": True}}, "normalizer.lowercase: false -> true"),
        ("two", {"added_tokens.json": {ENT: len(VOCAB)}}, "added tokens: <ent>"),
    ):
        folder = put(tmp_path / name, files | beside)
        tokenizers_load.from_file(folder)
        tokenizers_load.from_file(folder)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"note: {folder}: tokenizer.json is not what transformers' BertTokenizer uses"), line
        assert says in line and "max_input_chars_per_word: 200 -> 100" in line
    (folder / "tokenizer.json").unlink()
    tokenizers_load.from_file(folder)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"id {VOCAB.index('the')} has no piece" in line
    folder = put(tmp_path / "mark", {"config.json": BERT, "vocab.txt": "\ufeff" + lines(VOCAB)})
    tokenizers_load.from_file(folder)
    assert f"the vocabulary lacks [PAD] ({len(VOCAB)})" in capsys.readouterr().err


# ---- backends that are not WordPiece --------------------------------------------------------------------------------


def built(kind: str) -> rust.Tokenizer:
    if kind == "byte-level BPE":
        backend = rust.Tokenizer(models.BPE())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=OTHERS, initial_alphabet=alphabet)
    elif kind == "Unigram":
        backend = rust.Tokenizer(models.Unigram())
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=OTHERS, unk_token="<unk>")
    elif kind == "BPE with suffixes":
        backend = rust.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=OTHERS, end_of_word_suffix="</w>")
    else:
        backend = rust.Tokenizer(models.WordLevel(unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=OTHERS)
    backend.train_from_iterator(TEXTS * 3, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    backend.add_tokens([AddedToken(ENT, normalized=False)])
    return backend


@pytest.mark.parametrize("kind", ["byte-level BPE", "Unigram", "BPE with suffixes", "WordLevel"])
def test_a_bert_with_any_fast_tokenizer(kind, tmp_path):
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **roles(OTHERS)}
    files = {"config.json": BERT, "tokenizer.json": built(kind).to_str(), "tokenizer_config.json": config}
    ours = check(put(tmp_path / "hf", files), tmp_path)
    assert (ours.pad_id, ours.unk_id, ours.cls_id, ours.sep_id, ours.mask_id) == (0, 1, 2, 3, 4)
    assert ours.lowercase == (kind in ("Unigram", "BPE with suffixes"))
    rules = MaskingRules.from_options(BertPairs(), ours)
    assert rules.mask_id == 4 and len(rules.is_continuation) == ours.vocab_size
    assert ours.marks_words == (kind != "BPE with suffixes")
    if not ours.marks_words:
        assert not ours.is_continuation.any()
        with pytest.raises(UserError, match="do not say where words begin"):
            MaskingRules.from_options(BertPairs(whole_word_mask=True), ours)
        return
    (ids,) = ours.encode_batch(["the cats"])
    starts = [not ours.is_continuation[i] for i in ids]
    assert starts[0] and sum(starts) == (1 if kind == "WordLevel" and len(ids) == 1 else 2)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_what_is_saved_writes_special_tokens_as_rows_have_them(family, tmp_path, capsys):
    """A folder without a template: its export would read texts without the special tokens it was trained with."""
    backend = built("Unigram")
    backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    names = {"pad_token": "<pad>", "unk_token": "<unk>"}
    names |= {"cls_token": "<s>", "sep_token": "</s>"} if family == "bert" else {"eos_token": "</s>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    files = {"config.json": {"model_type": family}, "tokenizer.json": backend.to_str(), "tokenizer_config.json": config}
    ours = tokenizers_load.from_file(put(tmp_path / "hf", files))
    assert ("as [CLS] a [SEP] b [SEP]" if family == "bert" else "does not append eos") in capsys.readouterr().err
    ours.save(tmp_path / "saved")
    found = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")("the cat", "a", return_token_type_ids=True)
    a, b = ours.encode_batch(["the cat", "a"])
    if family == "t5":
        assert found["input_ids"] == [*a, 3, *b, 3]
        return
    assert found["input_ids"] == [2, *a, 3, *b, 3]
    assert found["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)


def test_notes_and_errors_about_odd_folders_take_one_line(tmp_path, capsys):
    tokens = {"added_tokens_decoder": added("\n")}
    put(tmp_path / "hf", {"config.json": BERT, "vocab.txt": lines(VOCAB), "tokenizer_config.json": tokens})
    put(tmp_path / "hf", {"tokenizer.json": wordpiece_json()})
    tokenizers_load.from_file(tmp_path / "hf")
    (line,) = capsys.readouterr().err.splitlines()
    assert f"added tokens: \\n ({len(VOCAB)})" in line
    put(tmp_path / "no", {"tokenizer.json": wordpiece_json(), "tokenizer_config.json": {"do_lower_case": True}})
    with pytest.raises(UserError, match="neither pad_token, cls_token and sep_token"):
        tokenizers_load.from_file(tmp_path / "no")
    assert not capsys.readouterr().err


@pytest.mark.parametrize("add_prefix_space", [True, False])
def test_sentences_have_the_pieces_of_their_text(add_prefix_space, tmp_path):
    """RoBERTa's tokenizer sets no space before a text: the second sentence would read as the end of a word."""
    backend = built("byte-level BPE")
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **roles(OTHERS)}
    files = {"config.json": BERT, "tokenizer.json": backend.to_str(), "tokenizer_config.json": config}
    ours = tokenizers_load.from_file(put(tmp_path / "hf", files))
    document = ["The cat sat.", "The dog sat on the mat.", "It is."]
    (sentences,) = bert_pairs.tokenize_sentences(iter([document]), ours)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert [i for ids in sentences for i in ids] == theirs(" ".join(document), add_special_tokens=False)["input_ids"]
    assert ours.space_between == ("" if add_prefix_space else " ")


def test_roles_that_are_missing(tmp_path):
    backend = built("Unigram").to_str()
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **roles(OTHERS)}
    for role in ("mask", "cls"):
        said = {name: token for name, token in config.items() if name != f"{role}_token"}
        folder = put(tmp_path / role, {"config.json": BERT, "tokenizer.json": backend, "tokenizer_config.json": said})
        if role == "cls":
            with pytest.raises(UserError, match="has no cls_token, which a bert needs"):
                tokenizers_load.from_file(folder)
            continue
        ours = tokenizers_load.from_file(folder)
        assert ours.mask_id is None
        with pytest.raises(UserError, match="no mask_token"):
            MaskingRules.from_options(BertPairs(), ours)


# ---- T5 -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def t5(tmp_path_factory) -> Path:
    """A folder with spiece.model and the tokenizer.json of the same vocabulary."""
    text = [TEXTS[2:17] * 3]
    found = sentencepiece.train(lambda: iter(text), vocab_size=420, extra_ids=10, character_coverage=1.0)
    found.save(tmp_path_factory.mktemp("t5"))
    folder = tmp_path_factory.mktemp("t5-hf")
    (folder / "spiece.model").write_bytes(found.model)
    (folder / "tokenizer.json").write_text(found.files()["tokenizer.json"])
    (folder / "size").write_text(str(found.vocab_size))
    return folder


T5S = {
    "config.json alone": {},
    "extra_ids": {"tokenizer_config.json": {"tokenizer_class": "T5Tokenizer", "extra_ids": 10}},
    "legacy false": {"tokenizer_config.json": {"tokenizer_class": "T5Tokenizer", "extra_ids": 10, "legacy": False}},
    "legacy true": {"tokenizer_config.json": {"tokenizer_class": "T5TokenizerFast", "extra_ids": 10, "legacy": True}},
    "added_tokens.json": {"added_tokens.json": [COL, ENT], "tokenizer_config.json": {"extra_ids": 10}},
    "added": {"added": [COL, "\n", ENT], "tokenizer_config.json": {"extra_ids": 10}},
    "additional special": {"tokenizer_config.json": {
        "extra_ids": 10, "additional_special_tokens": [*(f"<extra_id_{i}>" for i in range(10)), COL]}},
    "generic class": {"tokenizer_config.json": {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}},
}  # fmt: skip


@pytest.mark.parametrize("vocabulary", ["spiece.model", "tokenizer.json"])
@pytest.mark.parametrize("name", T5S)
def test_every_setting_of_a_t5_folder(name, vocabulary, t5, tmp_path):
    if name == "generic class" and vocabulary == "spiece.model":
        return
    size, files = int((t5 / "size").read_text()), {"config.json": T5} | T5S[name]
    if tokens := files.pop("added", None):
        files["tokenizer_config.json"] = files["tokenizer_config.json"] | {
            "added_tokens_decoder": added(*tokens, first=size)
        }
    if "added_tokens.json" in files:
        files["added_tokens.json"] = {token: size + i for i, token in enumerate(files["added_tokens.json"])}
    folder = put(tmp_path / "hf", files)
    shutil.copy(t5 / vocabulary, folder)
    ours = check(folder, tmp_path)
    assert ours.extra_ids == (100 if name == "config.json alone" else 10) and (ours.pad_id, ours.eos_id) == (0, 1)
    assert [ours.pieces[ours.sentinel_id(i)] for i in (0, 9)] == ["<extra_id_0>", "<extra_id_9>"]
    (ids,) = ours.encode_batch(["the <extra_id_0> cat"])
    assert ours.sentinel_id(0) in ids and ours.decode([*ids, 1, 0]) == "the <extra_id_0> cat"
    if "added" in name:
        (ids,) = ours.encode_batch([f"the{COL}cat"])
        assert ours.pieces.index(COL) in ids and COL in ours.decode(ids)
        assert ours.vocab_size > size


def test_a_t5_run_s_own_folder_stays_what_it_was(t5, tmp_path):
    """Old runs and ours are read without transformers; one more file makes it a folder of others."""
    own = sentencepiece.from_model(t5 / "spiece.model", extra_ids=10)
    own.save(tmp_path / "t")
    assert tokenizers_load.from_file(tmp_path / "t").sha256 == own.sha256
    size = own.vocab_size
    put(tmp_path / "t", {"added_tokens.json": {COL: size}})
    assert tokenizers_load.from_file(tmp_path / "t").pieces[size] == COL


# ---- what is kept and compared --------------------------------------------------------------------------------------


def test_a_kept_tokenizer_needs_neither_transformers_nor_network(tmp_path):
    folder = put(
        tmp_path / "hf", {"config.json": BERT, "vocab.txt": lines(VOCAB), "added_tokens.json": {ENT: len(VOCAB)}}
    )
    ours = tokenizers_load.from_file(folder)
    ours.save(tmp_path / "kept")
    (tmp_path / "json").write_text(ours.json)
    code = (
        "import sys; sys.modules['transformers'] = None; import socket; socket.socket = None\n"
        "from pathlib import Path; from bertjax.data.tokenizers import load as t\n"
        f"a = t.from_file(Path({str(tmp_path / 'kept')!r}))\n"
        f"b = t.from_json(Path({str(tmp_path / 'json')!r}).read_text(), '')\n"
        "print(a.sha256, b.sha256, a.encode_batch(['x<ent>y'])[0])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    (ids,) = ours.encode_batch(["x<ent>y"])
    assert out.strip() == f"{ours.sha256} {ours.sha256} {ids}" and len(VOCAB) in ids
    put(tmp_path / "kept", {"added_tokens.json": {COL: len(VOCAB) + 1}})  # changed: what transformers makes of it
    assert tokenizers_load.from_file(tmp_path / "kept").pieces[-1] == COL


@pytest.mark.slow
def test_loading_is_silent_and_needs_no_network(tmp_path):
    put(tmp_path / "hf", {"config.json": BERT, "vocab.txt": lines(VOCAB)})
    code = (
        "import socket\ndef no(*a, **k): raise RuntimeError('network')\nsocket.socket.connect = no\n"
        f"from bertjax.data.tokenizers import load as t; print(t.from_file({str(tmp_path / 'hf')!r}).vocab_size)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == (str(len(VOCAB)), "")


def test_behaviors_differ_by_more_than_pieces(tmp_path):
    """Equal pieces with another normalizer are another tokenizer; names for the same thing are not."""

    def of(**config) -> dict:
        files = {"config.json": BERT, "vocab.txt": lines(VOCAB), "tokenizer_config.json": config | {"x": 1}}
        return tokenizers_load.from_file(put(tmp_path / "hf", files)).behavior

    plain = of()
    for name, value in {"strip_accents": False, "tokenize_chinese_chars": False, "do_lower_case": False}.items():
        assert backend_state.differences(plain, of(**{name: value})), name
    assert backend_state.differences(plain, of(strip_accents=True)) == []
    put(tmp_path / "bare", {"vocab.txt": lines(VOCAB)})
    assert backend_state.differences(plain, tokenizers_load.from_file(tmp_path / "bare").behavior) == []


# ---- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["x.Y", None]}}}, "auto_map"),
        ({"config.json": BERT | {"auto_map": {"AutoConfig": "x.Y"}}}, "auto_map"),
        ({"tokenizer_config.json": "[1]"}, "not a JSON object"),
        ({"tokenizer_config.json": "{"}, "not a JSON object"),
        ({"vocab.txt": lines([*OTHERS, "a"])}, "name the vocabulary's own special tokens"),
        ({"vocab.txt": b"\xff\xfe\x00"}, "transformers cannot load"),
        ({"tokenizer.json": "{not json"}, "transformers cannot load"),
        ({"config.json": {"model_type": "t5"}}, "none of the files that a T5Tokenizer reads"),
        ({"config.json": {"model_type": "gpt2"}, "tokenizer.json": built("byte-level BPE").to_str()}, "pad_token"),
    ],
)  # fmt: skip
def test_folders_that_give_no_tokenizer(files, says, tmp_path):
    folder = put(tmp_path / "hf", {"config.json": BERT, "vocab.txt": lines(VOCAB)} | files)
    with pytest.raises(UserError, match=says) as caught:
        tokenizers_load.from_file(folder)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(folder)) and len(str(caught.value)) < 420


def test_a_folder_without_any_vocabulary(tmp_path):
    """transformers 5 would make a vocabulary of the five special tokens."""
    with pytest.raises(UserError, match="holds neither tokenizer.json nor vocab.txt"):
        tokenizers_load.from_file(put(tmp_path / "hf", {"config.json": BERT}))
    with pytest.raises(UserError, match="is a WordPiece tokenizer"):
        put(tmp_path / "hf", {"vocab.txt": lines(VOCAB)})
        config = SentencePieceConfig(path="hf")
        tokenizers_load.load(config, tmp_path, vocab_size=9, train_source_documents=None, cache=tmp_path)


def test_real_vocabulary(shared_data, tmp_path):
    folder = put(tmp_path / "hf", {"config.json": BERT, "tokenizer_config.json": {"strip_accents": False}})
    shutil.copy(shared_data / "vocab" / "bert-base-uncased-vocab.txt", folder / "vocab.txt")
    assert tokenizers_load.from_file(folder).encode_batch(TEXTS) == theirs(folder)
    assert huggingface.needs_transformers(folder)
