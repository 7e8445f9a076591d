"""The relatives of T5 in transformers: folders of its torch classes with random weights, read, run and written."""

import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from model_sections import model_section

from bertjax.config.huggingface.fields import read_fields, unknown_fields
from bertjax.config.schema.model import T5Config
from bertjax.data.tokenizers import sentencepiece
from bertjax.data.tokenizers.byte_level import ByteTokenizer
from bertjax.data.tokenizers.load import from_file
from bertjax.data.tokenizers.unigram_formats import spm_proto
from bertjax.data.tokenizers.unigram_formats.spm_proto import Piece
from bertjax.errors import UserError
from bertjax.interop import hf_folder
from bertjax.models import registry
from bertjax.models.decoding.beam import beam_search
from bertjax.models.decoding.sample import greedy
from bertjax.models.t5.model import shift_right

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

torch.set_num_threads(1)  # models this small only wait for each other's threads

from torch_t5 import flat_parameters  # noqa: E402

V, ROWS, WIDTH, LENGTH = 300, 6, 9, 8
SIZES = dict(vocab_size=V, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=3, relative_attention_num_buckets=8,
             relative_attention_max_distance=7)  # fmt: skip
UNTIED = {"tie_word_embeddings": False}
FAMILIES = {  # configuration and model class, fields, whether the output matrix is another one
    "flan": ("T5Config", "T5ForConditionalGeneration", {"feed_forward_proj": "gated-gelu", **UNTIED}, True),
    "ul2": ("T5Config", "T5ForConditionalGeneration", {"feed_forward_proj": "gated-silu", **UNTIED}, True),
    "mt5": ("MT5Config", "MT5ForConditionalGeneration", {}, True),
    "umt5": ("UMT5Config", "UMT5ForConditionalGeneration", {}, True),
    "umt5 tied": ("UMT5Config", "UMT5ForConditionalGeneration", {"num_decoder_layers": 3}, False),
    "byt5": ("T5Config", "T5ForConditionalGeneration",
             {"feed_forward_proj": "gated-gelu", "num_layers": 3, "num_decoder_layers": 1, **UNTIED}, True),
}  # fmt: skip
OWN_CODE = ("umt5", "byt5")  # the others compute what T5 1.1 does, of which test_decode_parity.py has beams
SEARCHED = [pytest.param(name, marks=() if name in OWN_CODE else pytest.mark.slow) for name in FAMILIES]


@cache
def theirs(family: str):
    """A torch model with random weights, and the files of its folder."""
    config, model_class, fields, own_output = FAMILIES[family]
    config = getattr(transformers, config)(**SIZES | fields, decoder_start_token_id=0, eos_token_id=1, pad_token_id=0)
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config).eval()
    if own_output:
        model.lm_head.weight = torch.nn.Parameter(torch.empty(V, SIZES["d_model"]))
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            wild = 0.3 if path.startswith(("shared", "lm_head")) else 0.6  # or every token would be the one before
            parameter.copy_(torch.randn_like(parameter) * wild + path.endswith("layer_norm.weight"))
    return model


@cache
def ours(family: str):
    """What the folder that transformers saves is read as: (section, parameters, module)."""
    with TemporaryDirectory() as folder:
        theirs(family).save_pretrained(folder)
        section = model_section(Path(folder))
        params = hf_folder.load_params(folder, section)
        assert not unknown_fields(json.loads((Path(folder) / "config.json").read_text()))
    return section, params, registry.build_model(section, ("lm",), params)


def inputs(rows: int = ROWS, width: int = WIDTH, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    real = np.arange(width)[None] < rng.integers(1, width + 1, rows)[:, None]
    return np.where(real, rng.integers(2, V, (rows, width)), 0).astype(np.int32), real.astype(np.int32)


def tensors(*arrays: np.ndarray) -> list:
    return [torch.tensor(array).long() for array in arrays]


@pytest.mark.parametrize("family", FAMILIES)
def test_same_encoder_output_and_logits(family):
    section, params, model = ours(family)
    expected = flat_parameters(theirs(family), section)
    assert params.keys() == expected.keys() and all((params[path] == x).all() for path, x in expected.items())
    (ids, real), (targets, kept) = inputs(width=17), inputs(width=11, seed=2)
    start = np.asarray(shift_right(targets, np.arange(11)[None]))
    with torch.no_grad():
        id_tensor, mask, decoder = tensors(ids, real, start)
        found = theirs(family)(input_ids=id_tensor, attention_mask=mask, decoder_input_ids=decoder)
    hidden = model.encode(ids, real)
    np.testing.assert_allclose(hidden[real > 0], found.encoder_last_hidden_state.numpy()[real > 0], atol=1e-4)
    logits = model.logits(model.decode(start, jnp.ones_like(start), hidden, real))
    np.testing.assert_allclose(logits[kept > 0], found.logits.numpy()[kept > 0], atol=1e-4, rtol=1e-4)
    scaled = {"umt5": True, "umt5 tied": True}.get(family, False)
    assert section.scales_outputs == scaled and section.tie_word_embeddings == (family == "umt5 tied")


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", SEARCHED)
def test_same_answers_by_greedy_and_beam_search(family, beams):
    id_tensor, mask = tensors(*inputs())
    options = {} if beams == 1 else {"num_beams": beams, "length_penalty": 0.6, "early_stopping": False}
    options["use_cache"] = family != "umt5 tied"  # transformers makes a umT5's cache as deep as its encoder
    expected = theirs(family).generate(
        input_ids=id_tensor, attention_mask=mask, max_new_tokens=LENGTH, do_sample=False, **options
    ).numpy()[:, 1:]  # fmt: skip
    expected = np.pad(expected, ((0, 0), (0, LENGTH - expected.shape[1])))
    expected = np.where((expected == 1).cumsum(1) - (expected == 1) > 0, 0, expected)
    model = ours(family)[2]
    search = partial(beam_search, beam_size=beams, alpha=0.6, rules="transformers") if beams > 1 else greedy
    found = jax.jit(lambda ids, real: search(model, ids, real, LENGTH))(*inputs())
    np.testing.assert_array_equal(found if beams == 1 else found[0], expected)
    assert len({tuple(row) for row in expected.tolist()}) >= ROWS // 2, "the inputs matter"


def test_umt5_has_the_gradients_of_torch():
    """Each layer's bias has a gradient of its own, also where layers are scanned and recomputed."""
    section, params, _ = ours("umt5")
    model = theirs("umt5")
    (ids, real), (targets, kept) = inputs(), inputs(seed=3)
    labels = np.where(kept > 0, targets, -100)
    id_tensor, mask, label_tensor = tensors(ids, real, labels)
    model.zero_grad()
    model(input_ids=id_tensor, attention_mask=mask, labels=label_tensor).loss.backward()
    for parameter in model.parameters():
        parameter.data, parameter.grad = parameter.grad, parameter.data  # flat_parameters reads the data
    expected = flat_parameters(model, section)
    for parameter in model.parameters():
        parameter.data, parameter.grad = parameter.grad, None

    def loss(params, **compute):
        module = registry.build_model(section, ("lm",), params, compute=registry.ComputeOptions(**compute))
        start = shift_right(jnp.where(kept > 0, targets, 0), jnp.arange(WIDTH)[None] * jnp.ones((ROWS, 1), int))
        logits = module.logits(module.decode(start, jnp.ones_like(start), module.encode(ids, real), real))
        gold = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
        return -(gold * kept).sum() / kept.sum()

    for compute in ({}, {"segments": (2,), "remat": "dots"}):
        found = jax.jit(jax.grad(partial(loss, **compute)))(params)
        assert found.keys() == expected.keys()
        for path, gradient in expected.items():
            np.testing.assert_allclose(found[path], gradient, atol=1e-5 + 1e-4 * np.abs(gradient).max(), err_msg=path)


class Words:
    """The tokenizer of exported folders, of which these tests read only the ids."""

    kind, pad_id, eos_id = "sentencepiece", 0, 1

    def save(self, folder: Path) -> None:
        pass


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_same_with_what_is_written(tmp_path, family):
    section, params, _ = ours(family)
    tokenizer = ByteTokenizer(V - 259) if family == "byt5" else Words()
    hf_folder.save_folder(tmp_path / "out", params, section, ("lm",), tokenizer=tokenizer)
    name = FAMILIES[family][1]
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == [name]
    read, about = getattr(transformers, name).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(about[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    (ids, real), (targets, _) = inputs(), inputs(seed=2)
    id_tensor, mask, decoder = tensors(ids, real, targets)
    with torch.no_grad():
        one, other = (
            m(input_ids=id_tensor, attention_mask=mask, decoder_input_ids=decoder).logits
            for m in (read.eval(), theirs(family))
        )
    np.testing.assert_array_equal(one.numpy(), other.numpy())
    assert model_section(tmp_path / "out") == section
    if family == "byt5":
        assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("héy").input_ids == [107, 198, 172, 124, 1]


# ---- config.json ----------------------------------------------------------------------------------------------------


def fields_of(folder: Path, **config) -> dict:
    (folder / "config.json").write_text(json.dumps(config))
    return read_fields(folder / "config.json")


def test_google_s_multilingual_configurations(tmp_path):
    """config.json of google/mt5-small and google/umt5-small, as far as it is read; without weights."""
    mt5 = fields_of(tmp_path, model_type="mt5", d_model=512, d_ff=1024, num_layers=8, num_heads=6, vocab_size=250112,
                    feed_forward_proj="gated-gelu", tie_word_embeddings=False)  # fmt: skip
    assert (mt5["tie_word_embeddings"], mt5["scale_decoder_outputs"], mt5["model_type"]) == (False, False, "mt5")
    umt5 = fields_of(tmp_path, model_type="umt5", vocab_size=256384, tie_word_embeddings=False, scalable_attention=True)
    section = T5Config(**umt5)
    assert (section.has_layer_bias, section.scales_outputs, section.tie_word_embeddings) == (True, False, False)
    small = transformers.UMT5Config()  # its defaults fill what a file leaves out
    names = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads", "feed_forward_proj", "dropout_rate")
    assert {name: getattr(section, name) for name in names} == {name: getattr(small, name) for name in names}
    other = T5Config(**fields_of(tmp_path, model_type="mt5"))
    small = transformers.MT5Config()
    assert {name: getattr(other, name) for name in names} == {name: getattr(small, name) for name in names}
    with pytest.raises(UserError, match="model_type must be bert, .*umt5"):
        fields_of(tmp_path, model_type="longt5")


def test_an_mt5_that_scales_its_outputs_has_no_class():
    assert not T5Config(model_type="mt5").scales_outputs and T5Config(model_type="umt5").scales_outputs
    with pytest.raises(ValueError, match="never scales"):
        T5Config(model_type="mt5", scale_decoder_outputs=True)
    assert "model_type" not in T5Config().model_dump(), "fingerprints of before stay valid"


def test_a_umt5_that_transformers_5_would_scale_is_exported_with_a_note(tmp_path):
    section, params, _ = ours("umt5")
    plain = section.model_copy(update={"scale_decoder_outputs": False})
    note = hf_folder.format_of(section).export_note
    assert note(section) is None and "multiplies the decoder outputs of every umT5" in str(note(plain))
    hf_folder.save_folder(tmp_path / "out", params, plain, ("lm",), tokenizer=Words())
    assert model_section(tmp_path / "out") == plain


def test_weights_of_another_family_are_refused(tmp_path):
    theirs("umt5").save_pretrained(tmp_path)
    section = model_section(tmp_path)
    with pytest.raises(UserError, match="model_type is 'umt5'"):
        hf_folder.load_params(tmp_path, section.model_copy(update={"model_type": "t5"}))
    theirs("mt5").save_pretrained(tmp_path / "mt5")  # a T5 by another name
    section = model_section(tmp_path / "mt5", model_type="t5")
    assert hf_folder.load_params(tmp_path / "mt5", section).keys() == ours("mt5")[1].keys()


# ---- tokenizers -----------------------------------------------------------------------------------------------------


def test_a_folder_without_a_vocabulary_file_is_read_as_bytes(tmp_path):
    tokenizer = transformers.ByT5Tokenizer()
    tokenizer.save_pretrained(tmp_path)
    found = from_file(tmp_path)
    assert isinstance(found, ByteTokenizer) and (found.vocab_size, found.extra_ids) == (384, 125)
    texts = ["Bytes: naïve 日本 🙂", "", " two  spaces\n", "tab\t\x00\x7f"]
    assert found.encode_batch(texts) == [tokenizer(text).input_ids[:-1] for text in texts]
    for ids in (*found.encode_batch(texts), [0, 107, 198, 1, 172, 2, 300], [198, 107, 258]):
        assert found.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "ByT5Tokenizer", "extra_ids": 125, "additional_special_tokens": ["<mine>"]})
    )
    with pytest.raises(UserError, match=r"tokenizer_config.json: the token '<mine>' is none of ByT5's"):
        from_file(tmp_path)


def test_mt5_s_sentinels_are_ordinary_pieces(tmp_path):
    """google/mt5-small: extra_ids 0, the last pieces are ▁<extra_id_99> to ▁<extra_id_0>; ids are transformers'."""
    text = ["the cat and the dog sat on the mat with a hat"] * 4
    plain = sentencepiece.train(lambda: iter([text]), vocab_size=30, extra_ids=0, character_coverage=1.0)
    model = spm_proto.read(plain.model)
    more = tuple(Piece(f"▁<extra_id_{number}>", 0.0, spm_proto.USER_DEFINED) for number in reversed(range(10)))
    (tmp_path / "spiece.model").write_bytes(spm_proto.write(replace(model, pieces=model.pieces + more)))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mt5"}))
    found, expected = from_file(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    size = len(plain.pieces) + 10
    assert (found.vocab_size, found.extra_ids, found.sentinel_id(0), found.sentinel_id(9)) == (
        size,
        10,
        size - 1,
        size - 10,
    )
    sentence = "the cat <extra_id_0> sat <extra_id_3>"
    (ids,) = found.encode_batch([sentence])
    assert ids == expected(sentence).input_ids[:-1] and size - 1 in ids
    assert found.decode(ids) == sentence
    found.save(tmp_path / "again")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "again")(sentence).input_ids == [*ids, 1]
    assert from_file(tmp_path / "again").sha256 == found.sha256


def test_umt5_s_tokenizer_falls_back_to_bytes(tmp_path):
    """google/umt5-small: a tokenizer.json with byte fallback and 300 sentinels after its pieces."""
    pieces = ["<pad>", "</s>", "<s>", "<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "▁the", "▁cat"]
    backend = tokenizers.Tokenizer(
        tokenizers.models.Unigram([(piece, -float(i > 3)) for i, piece in enumerate(pieces)], 3, byte_fallback=True)
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Metaspace()]
    )
    names = [f"<extra_id_{number}>" for number in reversed(range(300))]
    backend.add_special_tokens([*pieces[:4], *names])
    backend.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 300, "additional_special_tokens": names[::-1]}
    settings |= {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "umt5"}))
    found, expected = from_file(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (found.vocab_size, found.extra_ids) == (563, 300) and len(expected) == 563
    assert [found.sentinel_id(number) for number in (0, 299)] == [562, 263]
    sentence = "the cat ü <extra_id_7>"
    (ids,) = found.encode_batch([sentence])
    assert ids == [i for i in expected(sentence).input_ids if i != 1] and {4 + 0xC3, 4 + 0xBC, 555} <= set(ids)
    assert found.decode(ids).split() == sentence.split()
    found.save(tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again(sentence).input_ids == [*ids, 1]
