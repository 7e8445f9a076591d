"""ByT5's tokenizer: bytes as ids, the last bytes as sentinels, files and refusals."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertjax.config.loading.load import build
from bertjax.config.schema.data import BytesConfig, SentencePieceConfig, SpanCorruption, WordPieceConfig
from bertjax.config.schema.model import BertConfig, T5Config, find_tokenizer_problem
from bertjax.data.preprocess.denoising import concat_and_split
from bertjax.data.preprocess.denoising.batch import denoise_rows
from bertjax.data.preprocess.denoising.concat_and_split import tokenize_texts
from bertjax.data.preprocess.denoising.rules import DenoisingRules
from bertjax.data.tokenizers.byte_level import ByteTokenizer
from bertjax.data.tokenizers.load import from_file, from_json, load
from bertjax.errors import UserError


@given(st.text())
def test_ids_are_bytes_plus_three(text):
    tokenizer = ByteTokenizer()
    (ids,) = tokenizer.encode_batch([text])
    assert ids == [b + 3 for b in text.encode()]
    assert tokenizer.decode(ids) == tokenizer.decode([0, *ids, 1, 2, 259, 383, 500]) == text


def test_the_vocabulary_of_byt5():
    tokenizer = ByteTokenizer()
    assert (tokenizer.vocab_size, len(set(tokenizer.pieces))) == (384, 384)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2)
    assert (tokenizer.pieces[100], tokenizer.pieces[3], tokenizer.pieces[259]) == ("a", "<0x00>", "<extra_id_0>")
    assert tokenizer.encode_batch(["a\ud800"]) == [[100, 66]], "half of a surrogate pair is a question mark"
    assert tokenizer.encode_batch(["</s><extra_id_0>"])[0] == [ord(letter) + 3 for letter in "</s><extra_id_0>"]
    assert [tokenizer.sentinel_id(number) for number in (0, 1, 99)] == [258, 257, 159]
    with pytest.raises(UserError, match="there are 125 sentinels, number 125 is asked for"):
        tokenizer.sentinel_id(125)


def test_span_corruption_reuses_the_last_bytes():
    """As in "The dog [258]a ball [257]park." of transformers' page on ByT5."""
    tokenizer = ByteTokenizer()
    options = SpanCorruption(sequence_length=1024, mean_noise_span_length=20.0)  # byt5/tasks.py
    rules = DenoisingRules.from_options(options, tokenizer)
    assert (rules.tokens_length, rules.target_length) == (1193, 189)
    text = ("The dog chases a ball in the park. " * 40)[: rules.tokens_length]
    rows = {"tokens": np.array(tokenizer.encode_batch([text]), np.int32), "length": np.array([[len(text)]], np.int32)}
    out = denoise_rows(rows, rules, seed=0, epoch=0, indices=[0])
    inputs, targets = (out[name][0][out[name][0] > 1].tolist() for name in ("input_ids", "target_ids"))
    spans = {258 - number: number for number in range(9)}
    assert [i for i in inputs if i in spans] == [i for i in targets if i in spans] == list(spans)
    parts, hidden = [[]], []
    for token in inputs:
        parts.append([]) if token in spans else parts[-1].append(token)
    for token in targets:
        hidden.append([]) if token in spans else hidden[-1].append(token)
    joined = [token for pair in zip(parts, [*hidden, []], strict=True) for side in pair for token in side]
    assert tokenizer.decode(joined) == text


def test_long_texts_keep_every_byte(monkeypatch):
    monkeypatch.setattr(concat_and_split, "MAX_PIECE_CHARACTERS", 5)
    texts = ["white space  at\nevery cut ", "", "日本語のテキスト"]
    found = [[i for piece in document for i in piece] for document in tokenize_texts(iter(texts), ByteTokenizer())]
    assert found == [ids for ids in ByteTokenizer().encode_batch(texts) if ids]


def test_what_is_kept_reads_back(tmp_path):
    tokenizer = ByteTokenizer(7)
    tokenizer.save(tmp_path / "kept")
    for found in (from_file(tmp_path / "kept"), from_json(tokenizer.json, "x"), pickle.loads(pickle.dumps(tokenizer))):
        assert isinstance(found, ByteTokenizer)
        assert (found.sha256, found.pieces) == (tokenizer.sha256, tokenizer.pieces)
    assert tokenizer.sha256 != ByteTokenizer().sha256 and tokenizer.behavior != ByteTokenizer().behavior
    with pytest.raises(UserError, match="not a tokenizer of bytes"):
        from_json(json.dumps({"type": "bytes", "extra_ids": -1}), "meta.json")


def given_config(config, path=None):
    return load(config, path, vocab_size=1000, train_source_documents=None, cache=path)


def test_a_configuration_needs_no_file(tmp_path):
    assert given_config(BytesConfig(), tmp_path).vocab_size == 384
    ByteTokenizer(7).save(tmp_path / "kept")
    assert given_config(BytesConfig(path="kept"), tmp_path).extra_ids == 7
    for other in (SentencePieceConfig(path="kept"), WordPieceConfig(path="kept")):
        with pytest.raises(UserError, match="is ByT5's tokenizer of bytes; tokenizer.kind is"):
            given_config(other, tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    with pytest.raises(UserError, match="is a WordPiece tokenizer; tokenizer.kind is bytes"):
        given_config(BytesConfig(path="vocab.txt"), tmp_path)


def test_only_t5_reads_bytes():
    assert find_tokenizer_problem(T5Config(), BytesConfig()) is None
    assert "needs tokenizer.kind: wordpiece" in str(find_tokenizer_problem(BertConfig(), BytesConfig()))


def test_pretrained_fills_in_bytes(tmp_path):
    """A folder of ByT5, and a run whose configuration says bytes."""
    sizes = {"model_type": "t5", "d_model": 16, "num_layers": 3, "num_decoder_layers": 1, "vocab_size": 384}
    stage = {"name": "a", "steps": 1, "objective": {"kind": "text_to_text"}}
    stage["data"] = {"source": {"kind": "stdlib_docs"}, "preprocess": {"kind": "span_corruption"}}
    (tmp_path / "config.json").write_text(json.dumps({**sizes, "tokenizer_class": "ByT5Tokenizer"}))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("model: {family: t5, d_model: 16}\ntokenizer: {kind: bytes}\n")
    for place in (tmp_path, run):
        config = build({"pretrained": str(place), "stages": [stage]})
        assert config.tokenizer == BytesConfig(path=str(place)) and config.model.d_model == 16
    (tmp_path / "config.json").write_text(json.dumps({**sizes, "tokenizer_class": "T5Tokenizer"}))
    assert build({"pretrained": str(tmp_path), "stages": [stage]}).tokenizer.kind == "sentencepiece"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"additional_special_tokens": 5}, "the special tokens are 5, not a list; correct it"),
        ({"additional_special_tokens": "abc"}, "the special tokens are 'abc', not a list; correct it"),
        ({"added_tokens_decoder": {"3": "<mine>"}}, "the token '<mine>' is none of ByT5's"),
        ({"extra_special_tokens": {"image_token": "<img>"}}, "the token '<img>' is none of ByT5's"),
        ({"eos_token": {"content": ["</s>"]}}, r"the token \['</s>'\] is none of ByT5's"),
    ],
)
def test_settings_that_are_not_byt5s_are_refused_in_one_line(tmp_path, settings, problem):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"} | settings))
    with pytest.raises(UserError, match=rf"tokenizer_config.json: {problem}"):
        from_file(tmp_path)
