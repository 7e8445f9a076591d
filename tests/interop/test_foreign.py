"""Checkpoints of Flax, torch, google-research and T5X have the parameters of the same Hugging Face folder."""

import builtins
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from flax import serialization
from hf_folders import BERT, T5_MODELS, bert_folder, t5_folder
from model_sections import model_section
from old_checkpoints import (
    bert_variables,
    flax_tree,
    mesh_variables,
    t5x_parameters,
    write_bundle,
    write_json,
    write_t5x,
)
from safetensors.numpy import load_file

from bertjax.cli.main import main
from bertjax.data.tokenizers import sentencepiece
from bertjax.errors import UserError
from bertjax.interop import hf_folder
from bertjax.interop.foreign import convert, tf_bundle
from bertjax.interop.foreign.crc32c import crc32c

CODE_THAT_RUNS = b"cos\nsystem\n(S'touch ran'\ntR."


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return bert_folder(tmp_path_factory.mktemp("bert") / "hf", ("mlm", "nsp"))


@pytest.fixture(scope="module")
def tokenizer() -> sentencepiece.SentencePieceTokenizer:
    text = ["the cat and the dog sat on the mat with a hat"] * 4
    return sentencepiece.train(lambda: iter([text]), vocab_size=36, extra_ids=6, character_coverage=1.0)


@pytest.fixture(scope="module")
def t5(tmp_path_factory, tokenizer) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("t5")
    return {version: t5_folder(home / version, model, tokenizer) for version, model in T5_MODELS.items()}


@pytest.fixture
def spiece(t5, tmp_path) -> Callable[[Path], None]:
    """Put the bare SentencePiece model into a folder."""
    return lambda folder: shutil.copy(t5["1.0"] / "spiece.model", folder / "spiece.model")


def imported(place: Path, tmp_path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...], dict]:
    """(parameters, notes, config.json) of a foreign checkpoint."""
    found = convert.read(place)
    assert found is not None
    with convert.as_folder(found, tmp_path) as folder:
        config = json.loads((folder / "config.json").read_text())
        params = hf_folder.load_params(folder, model_section(folder))
    assert not list(tmp_path.glob(".bertjax*"))
    return params, found.notes, config


def assert_same(params: dict[str, np.ndarray], folder: Path) -> None:
    wanted = hf_folder.load_params(folder, model_section(folder))
    assert params.keys() == wanted.keys()
    for path, array in wanted.items():
        np.testing.assert_array_equal(params[path], array, err_msg=path)


def refused(place: Path, *mentions: str) -> None:
    with pytest.raises(UserError) as caught:
        convert.read(place)
    assert "\n" not in str(caught.value)
    for mention in mentions:
        assert mention in str(caught.value)


# ---- Flax and torch -------------------------------------------------------------------------------------------------


def without_weights(folder: Path, out: Path) -> Path:
    shutil.copytree(folder, out)
    (out / "model.safetensors").unlink()
    return out


def put_flax(folder: Path, weights: dict[str, np.ndarray]) -> None:
    (folder / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(flax_tree(weights)))


def test_flax_weights_of_bert_and_t5(bert, t5, tmp_path):
    for number, folder in enumerate((bert, *t5.values())):
        here = without_weights(folder, tmp_path / str(number))
        put_flax(here, load_file(folder / "model.safetensors"))
        assert_same(imported(here, tmp_path)[0], folder)


def test_flax_names_are_spelled_as_transformers_4_does(bert):
    tree = flax_tree(load_file(bert / "model.safetensors"))
    layer = tree["bert"]["encoder"]["layer"]["0"]
    assert layer["intermediate"]["dense"]["kernel"].shape == (BERT.hidden_size, BERT.intermediate_size)
    assert set(layer["output"]["LayerNorm"]) == {"scale", "bias"}
    assert tree["bert"]["embeddings"]["word_embeddings"]["embedding"].shape == (BERT.vocab_size, BERT.hidden_size)


def test_flax_shards_and_files_that_are_damaged(bert, tmp_path):
    here, weights = without_weights(bert, tmp_path / "flax"), load_file(bert / "model.safetensors")
    names = sorted(weights)
    for number, half in enumerate((names[::2], names[1::2])):
        tree = flax_tree({name: weights[name] for name in half})
        (here / f"flax_model-{number}.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    index = here / "flax_model.msgpack.index.json"
    write_json(index, {"weight_map": {str(number): f"flax_model-{number}.msgpack" for number in (0, 1)}})
    assert_same(imported(here, tmp_path)[0], bert)
    whole = (here / "flax_model-1.msgpack").read_bytes()
    for content in (whole[:-7], b"", b"\xc1", b"version https://git-lfs.github.com/spec/v1\n", b"\x81\xa1a\x01"):
        (here / "flax_model-1.msgpack").write_bytes(content)
        refused(here, "flax_model-1.msgpack", "again" if b"lfs" not in content else "git lfs pull")
    (here / "flax_model-1.msgpack").unlink()
    refused(here, "flax_model-1.msgpack", "download it too")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_weights(bert, tmp_path, dtype):
    torch = pytest.importorskip("torch")
    here = without_weights(bert, tmp_path / "torch")
    weights = {name: torch.from_numpy(x) for name, x in load_file(bert / "model.safetensors").items()}
    stored = {name: x.to(getattr(torch, dtype)) for name, x in weights.items()}
    stored["bert.embeddings.position_ids"] = torch.arange(4)  # a buffer of old files
    torch.save(stored, here / "pytorch_model.bin")
    if dtype == "float32":
        assert_same(imported(here, tmp_path)[0], bert)
    found = convert.read(here)
    name = "bert.pooler.dense.weight"
    assert found.weights[name].dtype == (np.float32 if dtype == "float32" else ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found.weights[name].astype(np.float32), stored[name].float().numpy())


def test_torch_files_that_are_damaged_or_run_code(bert, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    here = without_weights(bert, tmp_path / "torch")
    path = here / "pytorch_model.bin"
    torch.save({"a": torch.ones(100)}, path)
    for content in (path.read_bytes()[:-40], b"", CODE_THAT_RUNS):
        path.write_bytes(content)
        refused(here, "pytorch_model.bin", "again")
    torch.save([1, 2], path)
    refused(here, "not a dictionary of tensors")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    refused(here, "could run code in torch 2.5.1+cpu")
    assert not Path("ran").exists()


@pytest.mark.parametrize("form", ["sparse", "8 bits", "no data", "number as name"])
def test_torch_tensors_that_numpy_has_not(bert, tmp_path, form):
    torch = pytest.importorskip("torch")
    folder = without_weights(bert, tmp_path / "torch")
    tensors = {name: torch.tensor(array) for name, array in load_file(bert / "model.safetensors").items()}
    name = "bert.embeddings.word_embeddings.weight"
    changed = {
        "sparse": lambda: {name: tensors[name].to_sparse()},
        "8 bits": lambda: {name: tensors[name].to(torch.float8_e4m3fn)},
        "no data": lambda: {name: tensors[name].to("meta")}, "number as name": lambda: {3: tensors[name]},
    }[form]()  # fmt: skip
    torch.save(tensors | changed, folder / "pytorch_model.bin")
    said = ["not a dictionary of tensors"] if form == "number as name" else [name, "dense tensor of float32"]
    refused(folder, "pytorch_model.bin", *said)


def test_torch_shards_that_hold_one_tensor_are_refused(bert, tmp_path):
    torch = pytest.importorskip("torch")
    folder = without_weights(bert, tmp_path / "torch")
    tensors = {name: torch.tensor(array) for name, array in load_file(bert / "model.safetensors").items()}
    first, *others = tensors
    torch.save({name: tensors[name] for name in others}, folder / "a.bin")
    torch.save({first: tensors[first]}, folder / "b.bin")
    files = {name: "b.bin" if name == first else "a.bin" for name in tensors}
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": files})
    assert_same(imported(folder, tmp_path)[0], bert)
    torch.save({first: tensors[first] + 1, others[0]: tensors[others[0]]}, folder / "b.bin")
    refused(folder, "b.bin", others[0], "as another file of pytorch_model.bin.index.json does")


def test_without_torch_its_file_is_refused_and_flax_read(bert, tmp_path, monkeypatch):
    here = without_weights(bert, tmp_path / "torch")
    (here / "pytorch_model.bin").write_bytes(b"x")
    find = builtins.__import__

    def missing(name, *rest, **more):
        if name == "torch":
            raise ImportError(name)
        return find(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.setattr("bertjax.interop.foreign.pickled.find_spec", lambda name: None)
    refused(here, "pip install 'bertjax[torch]'")
    put_flax(here, load_file(bert / "model.safetensors"))
    assert_same(imported(here, tmp_path)[0], bert)


def test_safetensors_come_first(bert, tmp_path):
    here = tmp_path / "both"
    shutil.copytree(bert, here)
    (here / "pytorch_model.bin").write_bytes(b"x")
    assert convert.read(here) is None


# ---- TensorFlow's files ---------------------------------------------------------------------------------------------

# written by tf.compat.v1.train.Saver of TensorFlow 2.21
TF_INDEX = """
00000608011a020801001b13626572742f656e636f6465722f6c617965725f302f6b65726e656c080112081202080212020803281835c0db
3d17130611312f62696173080e12041202080220182804352e4a56f2000b0d676c6f62616c5f7374657008091200201c280835bbd79f1100
000000010000000075984465000000000100000000c0f2a1b0000102680077000000000100000000b1916d027c0889010e00000000000000
0000000000000000000000000000000000000000000000000000000057fb808b247547db
"""
TF_DATA = "000000000000803f0000004000004040000080400000a040c03f00c00700000000000000"


def tensorflow_files(folder: Path) -> Path:
    (folder / "model.ckpt-7.data-00000-of-00001").write_bytes(bytes.fromhex(TF_DATA))
    (folder / "model.ckpt-7.index").write_bytes(bytes.fromhex(TF_INDEX))
    return folder / "model.ckpt-7.index"


def test_files_of_tensorflow_itself(tmp_path):
    found = {name: x.read() for name, x in tf_bundle.read_index(tensorflow_files(tmp_path)).items()}
    kernel, bias, step = (found[n] for n in ("bert/encoder/layer_0/kernel", "bert/encoder/layer_1/bias", "global_step"))
    np.testing.assert_array_equal(kernel, np.arange(6, dtype=np.float32).reshape(2, 3))
    assert (bias.dtype, bias.astype(np.float32).tolist()) == (ml_dtypes.bfloat16, [1.5, -2.0])
    assert (step.dtype, step.shape, int(step)) == (np.int64, (), 7)


def test_every_byte_of_a_bundle_counts(tmp_path):
    """Any byte changed, and any cut: an error in one line, or the same tensors (padding, the order of restarts)."""
    index = tensorflow_files(tmp_path)
    data = index.with_name("model.ckpt-7.data-00000-of-00001")
    wanted = {name: x.read().tobytes() for name, x in tf_bundle.read_index(index).items()}
    wrong = 0
    for path in (index, data):
        content = path.read_bytes()
        changes = [content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :] for at in range(len(content))]
        for changed in (*changes, *(content[:at] for at in range(0, len(content), 5))):
            path.write_bytes(changed)
            try:
                assert {name: x.read().tobytes() for name, x in tf_bundle.read_index(index).items()} == wanted
            except UserError as error:
                wrong += 1
                assert "\n" not in str(error) and "model.ckpt-7" in str(error)
        path.write_bytes(content)
    assert wrong > 200
    data.unlink()
    with pytest.raises(UserError, match="data-00000-of-00001 is not beside it"):
        tf_bundle.read_index(index)["global_step"].read()


@pytest.mark.parametrize("snappy", [False, True])
def test_several_blocks_and_compression(tmp_path, snappy):
    rng = np.random.default_rng(0)
    tensors = {f"layer_{i:03d}/kernel": rng.normal(size=(i % 3, 4)).astype(np.float32) for i in range(70)}
    index = write_bundle(tmp_path / "m.ckpt", tensors, snappy=snappy)
    found = tf_bundle.read_index(index)
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name].read(), array)


def test_the_checksum():
    rng = np.random.default_rng(0)
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720
    assert crc32c(bytes(32)) == 0x8A9136AA
    short = rng.integers(0, 256, 5001, dtype=np.uint8).tobytes()
    register = 0xFFFFFFFF
    for octet in short:
        register ^= octet
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    assert crc32c(short) == register ^ 0xFFFFFFFF  # many lanes against bit by bit


def test_the_checkpoint_that_the_folder_names_is_read(tmp_path):
    for step in (2, 10):
        write_bundle(tmp_path / f"model.ckpt-{step}", {"global_step": np.int64(step)})
    assert tf_bundle.find_index(tmp_path).name == "model.ckpt-10.index"
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/old/place/model.ckpt-2"\n')
    assert tf_bundle.find_index(tmp_path).name == "model.ckpt-2.index"


# ---- google-research/bert -------------------------------------------------------------------------------------------


def google_bert(folder: Path, out: Path, name: str = "bert_model.ckpt", **extra: np.ndarray) -> Path:
    """A BERT folder as google-research/bert's zip files hold it."""
    write_bundle(out / name, bert_variables(load_file(folder / "model.safetensors")) | extra)
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes = {key: getattr(BERT, key) for key in (*keys, "max_position_embeddings", "type_vocab_size")}
    write_json(out / "bert_config.json", sizes | {"hidden_act": "gelu", "hidden_dropout_prob": 0.1})
    shutil.copy(folder / "vocab.txt", out)
    return out


@pytest.mark.parametrize("heads", [("mlm", "nsp"), ("classifier",), ("qa",)])
def test_bert_checkpoints(tmp_path, heads):
    folder = bert_folder(tmp_path / "hf", heads)
    state = {f"bert/pooler/dense/kernel/{name}": np.zeros(2, np.float32) for name in ("adam_m", "adam_v")}
    here = google_bert(folder, tmp_path / "tf", "model.ckpt-7", global_step=np.int64(7), **state)
    params, notes, config = imported(here, tmp_path)
    assert_same(params, folder)
    assert config["architectures"] == json.loads((folder / "config.json").read_text())["architectures"]
    assert config["hidden_act"] == "gelu_new"
    assert any("tanh" in note for note in notes)
    assert any("not read: 1 x adam_m, 1 x adam_v, 1 x global_step" in note for note in notes)


@pytest.mark.parametrize(("piece", "lowercase"), [("word", True), ("Word", False)])
def test_the_vocabulary_says_whether_texts_are_lowercased(bert, tmp_path, piece, lowercase):
    here = google_bert(bert, tmp_path / "tf")
    words = (here / "vocab.txt").read_text().splitlines()
    (here / "vocab.txt").write_text("\n".join(piece if word == "word" else word for word in words) + "\n")
    assert convert.read(here).made["tokenizer_config.json"]["do_lower_case"] is lowercase


def test_bert_checkpoints_that_cannot_be_read(bert, tmp_path):
    here = google_bert(bert, tmp_path / "tf")
    config = json.loads((here / "bert_config.json").read_text())
    for change, mention in {
        "num_hidden_layers": (3, "bert/encoder/layer_2/attention/self/query/kernel"),
        "vocab_size": (41, "vocab_size and hidden_size are 41 and 16"),
        "hidden_size": ("16", "hidden_size must be a positive number"),
        "num_attention_heads": (5, "must divide"),
    }.items():
        write_json(here / "bert_config.json", config | {change: mention[0]})
        refused(here, mention[1])
    write_json(here / "bert_config.json", config | {"num_hidden_layers": 1})
    refused(here, "bert/encoder/layer_1/", "has no place")
    for name in ("bert_config.json", "vocab.txt"):
        write_json(here / "bert_config.json", config)
        kept = (here / name).read_bytes()
        (here / name).unlink()
        refused(here, f"no {name}")
        (here / name).write_bytes(kept)
    write_bundle(tmp_path / "electra/model.ckpt", {"electra/embeddings/word_embeddings": np.zeros((2, 2), np.float32)})
    refused(tmp_path / "electra", "electra/embeddings/word_embeddings", "neither a BERT nor a T5")


# ---- T5 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_mesh_tensorflow(t5, spiece, tmp_path, version):
    variables = mesh_variables(load_file(t5[version] / "model.safetensors"))
    state = {"shared/embedding_slot_vr": np.zeros(2, np.float32), "global_step": np.int64(1000000)}
    unused = {"decoder/block_000/layer_001/EncDecAttention/relative_attention_bias": np.zeros((3, 32), np.float32)}
    write_bundle(tmp_path / "mesh/model.ckpt-1000000", variables | state | unused)
    refused(tmp_path / "mesh", "--tokenizer FILE")
    spiece(tmp_path / "mesh")
    params, notes, config = imported(tmp_path / "mesh", tmp_path)
    assert_same(params, t5[version])
    assert config["feed_forward_proj"] == ("relu" if version == "1.0" else "gated-gelu")
    assert any("Adafactor's state is not read: 1 x global_step, 1 x slot_vr" in note for note in notes)


def test_the_gin_file_says_the_activation_and_the_vocabulary(t5, spiece, tmp_path):
    here = tmp_path / "mesh"
    write_bundle(here / "model.ckpt-1", mesh_variables(load_file(t5["1.1"] / "model.safetensors")))
    gin = here / "operative_config.gin"
    gin.write_text(
        "mesh_tensorflow.transformer.transformer_layers.DenseReluDense.activation = ['swish', 'linear']\n"
        "sentencepiece.SentencePieceVocabulary.sentencepiece_model_file = \\\n    'gs://t5-data/vocabs/x.model'\n"
    )
    refused(here, "operative_config.gin names gs://t5-data/vocabs/x.model")
    spiece(here)
    assert imported(here, tmp_path)[2]["feed_forward_proj"] == "gated-silu"
    gin.write_text("DenseReluDense.activation = ('tanh', 'linear')\n")
    refused(here, "feed_forward_proj", "gated-tanh")
    gin.write_text("DenseReluDense.activation = 'relu'\n")
    refused(here, "operative_config.gin", "does not fit")


T5X_FORMS = {
    "layers": ("1.0", {}, "specs"),
    "placeholders": ("1.1", {}, "placeholders"),
    "one file": ("1.0", {}, "flat"),
    "scanned": ("1.1", {"scanned": "layers"}, "specs"),
    "scanned first axis": ("1.0", {"scanned": "layers", "axis": 0}, "flat"),
    "scanned heads": ("1.1", {"scanned": "{}", "split_heads": 3}, "placeholders"),
}


@pytest.mark.parametrize("form", T5X_FORMS)
def test_t5x(t5, spiece, tmp_path, form):
    version, options, stored = T5X_FORMS[form]
    parameters = t5x_parameters(load_file(t5[version] / "model.safetensors"), **options)
    write_t5x(tmp_path / "t5x/checkpoint_900", {"token_embedder/embedding": np.zeros((2, 2), np.float32)}, "flat")
    write_t5x(tmp_path / "t5x/checkpoint_1000", parameters, stored)
    spiece(tmp_path / "t5x")
    params, notes, _ = imported(tmp_path / "t5x", tmp_path)  # its last step
    assert_same(params, t5[version])
    assert any(f"the optimizer's state ({2 * len(parameters)} arrays) is not read" in note for note in notes)
    assert_same(imported(tmp_path / "t5x/checkpoint_1000", tmp_path)[0], t5[version])


def test_t5x_in_bfloat16(t5, spiece, tmp_path):
    parameters = t5x_parameters(load_file(t5["1.0"] / "model.safetensors"))
    parameters = {name: array.astype(ml_dtypes.bfloat16) for name, array in parameters.items()}
    write_t5x(tmp_path / "checkpoint_1", parameters)
    spiece(tmp_path / "checkpoint_1")
    weights = convert.read(tmp_path / "checkpoint_1").weights
    assert {array.dtype.name for array in weights.values()} == {"bfloat16"}
    np.testing.assert_array_equal(weights["shared.weight"], parameters["token_embedder/embedding"])


def test_t5x_layers_with_biases_of_their_own(t5, spiece, tmp_path):
    parameters = t5x_parameters(load_file(t5["1.1"] / "model.safetensors"), scanned="layers")
    bias = parameters.pop("encoder/relpos_bias/rel_embedding")
    same = np.stack([bias, bias], 1)
    write_t5x(tmp_path / "same", parameters | {"encoder/layers/relative_posemb/rel_embedding": same}, "flat")
    spiece(tmp_path)
    assert_same(imported(tmp_path / "same", tmp_path)[0], t5["1.1"])
    other = same + np.arange(2, dtype=np.float32)[:, None]
    write_t5x(tmp_path / "other", parameters | {"encoder/layers/relative_posemb/rel_embedding": other}, "flat")
    refused(tmp_path / "other", "umT5")


def test_t5x_checkpoints_that_cannot_be_read(t5, spiece, tmp_path):
    parameters = t5x_parameters(load_file(t5["1.0"] / "model.safetensors"))
    here = tmp_path / "checkpoint_1"
    path = write_t5x(here, parameters)
    spiece(here)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(here, "checkpoint_1/checkpoint", "not a sound T5X checkpoint")
    outside = serialization.msgpack_restore(content)
    outside["optimizer"]["target"]["token_embedder"]["embedding"]["kvstore"]["path"] = "../secret"
    path.write_bytes(serialization.msgpack_serialize(outside))
    refused(here, "token_embedder/embedding", "neither an array nor the name of one")
    path.write_bytes(content)
    array = here / "target.encoder.layers_1.mlp.wo.kernel"
    chunk = array / "0.0"
    kept = chunk.read_bytes()
    chunk.write_bytes(kept[:-20])
    refused(here, array.name, "not a sound zarr array")
    chunk.unlink()
    refused(here, array.name, "1 of 4 chunks are missing")
    shutil.rmtree(array)
    refused(here, array.name, "copy the whole checkpoint")
    lost = "decoder/layers_0/mlp/wi/kernel"
    write_t5x(tmp_path / "lost", {name: x for name, x in parameters.items() if name != lost}, "flat")
    spiece(tmp_path / "lost")
    refused(tmp_path / "lost", lost, "complete T5")
    more = {"decoder/layers_0/adapter/kernel": np.zeros((2, 2), np.float32)}
    write_t5x(tmp_path / "more", parameters | more, "flat")
    spiece(tmp_path / "more")
    refused(tmp_path / "more", "decoder/layers_0/adapter/kernel", "no place")
    encoder = {name: x for name, x in parameters.items() if not name.startswith("decoder/")}
    write_t5x(tmp_path / "encoder", encoder, "flat")
    spiece(tmp_path / "encoder")
    refused(tmp_path / "encoder", "its arrays are not those of a T5")
    flat = {"token_embedder/embedding": np.zeros(4, np.float32)}
    write_t5x(tmp_path / "vector", flat, "flat")
    spiece(tmp_path / "vector")
    refused(tmp_path / "vector", "token_embedder/embedding has shape [4]")


def test_t5x_arrays_that_are_there_twice_or_have_no_file_name(t5, spiece, tmp_path):
    weights = load_file(t5["1.1"] / "model.safetensors")
    parameters, scanned = t5x_parameters(weights), t5x_parameters(weights, scanned="layers")
    both = parameters | {name: 2 * x for name, x in scanned.items() if "/layers/" in name}
    write_t5x(tmp_path / "both", both, "flat")
    spiece(tmp_path / "both")
    refused(
        tmp_path / "both",
        "decoder/layers_0/encoder_decoder_attention/key/kernel",
        "a scanned array with the same layer",
    )
    path = write_t5x(tmp_path / "long", parameters, "flat")
    spiece(tmp_path / "long")
    tree = serialization.msgpack_restore(path.read_bytes())
    tree["optimizer"]["target"]["token_embedder"]["embedding"] = "PLACEHOLDER://" + "a" * 5000
    path.write_bytes(serialization.msgpack_serialize(tree))
    refused(tmp_path / "long", "is not beside it")


def test_a_gated_t5_without_an_output_matrix_is_said_to_be_tied(t5, spiece, tmp_path):
    parameters = t5x_parameters(load_file(t5["1.1"] / "model.safetensors"))
    del parameters["decoder/logits_dense/kernel"]
    write_t5x(tmp_path / "tied", parameters, "flat")
    spiece(tmp_path / "tied")
    _, notes, config = imported(tmp_path / "tied", tmp_path)
    assert config["tie_word_embeddings"] and any("has no output matrix" in note for note in notes)
    write_json(tmp_path / "tied/config.json", config)  # which says it
    assert not any("output matrix" in note or "config.json" in note for note in convert.read(tmp_path / "tied").notes)
    old = t5x_parameters(load_file(t5["1.0"] / "model.safetensors"))
    write_t5x(tmp_path / "old", old, "flat")
    spiece(tmp_path / "old")
    assert not any("output matrix" in note for note in convert.read(tmp_path / "old").notes)


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_imports_and_exports_again(t5, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = load_file(t5["1.1"] / "model.safetensors")
    write_t5x(Path("t5x/checkpoint_5"), t5x_parameters(weights, scanned="layers"))
    spiece = str(t5["1.1"] / "spiece.model")
    assert main(["import", "t5x", "run"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not Path("run").exists()
    assert main(["import", "t5x", "run", "--tokenizer", spiece]) == 0
    assert "training starts with a new one" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["run", "t5x"]
    assert main(["export", "run", "hf"]) == 0
    assert json.loads(Path("hf/config.json").read_text())["feed_forward_proj"] == "gated-gelu"
    back = load_file("hf/model.safetensors")
    assert back.keys() == weights.keys()
    assert all(np.array_equal(back[name], weights[name]) for name in weights)


def test_a_tokenizer_is_only_for_checkpoints_without_one(bert, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    vocabulary = str(bert / "vocab.txt")
    for place in (str(bert), str(google_bert(bert, tmp_path / "tf"))):
        capsys.readouterr()
        assert main(["import", place, "run", "--tokenizer", vocabulary]) == 2
        assert "leave it out" in capsys.readouterr().err
    assert not Path("run").exists()


def test_errors_name_the_checkpoint_and_not_its_copy(bert, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    here = google_bert(bert, Path("tf"))
    (here / "vocab.txt").write_text("".join(f"piece{i}\n" for i in range(50)))
    assert main(["import", "tf", "run"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "tf" in err and ".bertjax-import" not in err
    assert sorted(path.name for path in Path().iterdir()) == ["tf"]
