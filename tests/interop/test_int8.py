"""8-bit weights: what is written, its error, and that the folder is a model like any other."""

import json

import numpy as np
import pytest
from hf_folders import BERT, T5_MODELS, bert_folder, t5_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file, save_file

from bertjax.cli.main import main
from bertjax.data.tokenizers import sentencepiece
from bertjax.errors import UserError
from bertjax.interop import hf_folder, int8
from bertjax.interop.int8 import quantize_folder, quantize_rows
from bertjax.interop.safetensors_folder import INT8_WEIGHTS, SCALE

FLOATS = st.floats(-1e4, 1e4, width=32)


@settings(deadline=None)
@given(arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=FLOATS))
def test_a_weight_is_off_by_half_a_step_of_its_row_at_most(weights):
    quantized, scales = quantize_rows(weights)
    assert quantized.dtype == np.int8 and np.abs(quantized.astype(int)).max() <= 127
    steps = np.abs(weights).max(1, keepdims=True) / 127
    off = np.abs(quantized.astype(np.float64) * scales[:, None] - weights)
    assert (off <= 0.5 * steps * (1 + 1e-5) + 1e-30).all()


def test_rows_have_scales_of_their_own():
    """A row of large weights does not cost one of small weights its precision."""
    quantized, scales = quantize_rows(np.array([[127.0, -1.0], [0.5, 0.25], [0.0, 0.0]], np.float32))
    assert quantized.tolist() == [[127, -1], [127, 64], [0, 0]]
    assert scales == pytest.approx([1, 0.5 / 127, 1])


@pytest.fixture(params=["bert", "1.0", "1.1"])
def folders(request, tmp_path, monkeypatch):
    """(a Hugging Face folder, its model section, the same folder with int8 weights)."""
    monkeypatch.setattr(int8, "MIN_ELEMENTS", 200)
    if request.param == "bert":
        model = BERT
        whole = bert_folder(tmp_path / "whole", ("qa",))
    else:
        model = T5_MODELS[request.param]
        text = [[f"word{n} of a line {n % 7} and more {n % 13}" for n in range(200)]]
        tokenizer = sentencepiece.train(lambda: iter(text), vocab_size=100, extra_ids=20, character_coverage=1.0)
        whole = t5_folder(tmp_path / "whole", model, tokenizer)
    counts = quantize_folder(whole, tmp_path / "small")
    assert counts["matrices"] >= 7 and counts["others"] >= 4
    return whole, model, tmp_path / "small"


def test_the_folder_reads_as_the_model_with_rounded_weights(folders):
    whole, model, small = folders
    before, after = (hf_folder.load_params(folder, model) for folder in (whole, small))
    assert before.keys() == after.keys()
    stored = load_file(small / INT8_WEIGHTS)
    rounded = {name.removesuffix(SCALE) for name in stored if name.endswith(SCALE)}
    original = load_file(whole / "model.safetensors")
    assert stored.keys() - {name + SCALE for name in rounded} == original.keys()
    for name, array in original.items():
        if name in rounded:
            steps = np.abs(array).max(1, keepdims=True) / 127
            assert (np.abs(stored[name] * stored[name + SCALE][:, None] - array) <= 0.501 * steps + 1e-9).all()
        else:
            assert (stored[name] == array).all()
    for path, array in before.items():
        assert np.abs(after[path] - array).max() <= 0.501 * np.abs(array).max() / 127 + 1e-9, path
    assert (
        not (small / "model.safetensors").exists()
        and (small / "tokenizer.json").exists() == (whole / "tokenizer.json").exists()
    )


def test_a_scale_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "MIN_ELEMENTS", 200)
    small = tmp_path / "small"
    quantize_folder(bert_folder(tmp_path / "whole", ("qa",)), small)
    tensors = load_file(small / INT8_WEIGHTS)
    name = next(name for name in tensors if name.endswith(SCALE))
    save_file(tensors | {name: tensors[name][:-1]}, small / INT8_WEIGHTS)
    with pytest.raises(UserError, match="its scale do not fit"):
        hf_folder.load_params(small, BERT)


def test_the_folder_appears_in_one_piece(tmp_path, monkeypatch, capsys):
    """Folders above it are made, what a killed try has left is removed, and a failure leaves nothing."""
    monkeypatch.setattr(int8, "MIN_ELEMENTS", 200)
    monkeypatch.chdir(tmp_path)
    bert_folder(tmp_path / "whole", ("qa",))
    left = tmp_path / "new/deep/.small.unfinished"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_text("half")
    assert main(["quantize", "whole", "new/deep/small", "--no-evaluate"]) == 0
    assert [path.name for path in (tmp_path / "new/deep").iterdir()] == ["small"]

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(int8, "write_tensors", fails)
    assert main(["quantize", "whole", "new/deep/other", "--no-evaluate"]) == 4
    assert "new/deep/other: could not be written: No space left" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "new/deep").iterdir()] == ["small"]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for command in ("quantize", "export"):
        assert main([command, "../whole", "."]) == 2 and "name a new folder" in capsys.readouterr().err


def test_a_hugging_face_folder_has_no_scores_to_compare(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(int8, "MIN_ELEMENTS", 200)
    monkeypatch.chdir(tmp_path)
    bert_folder(tmp_path / "given", ("qa",))
    assert main(["quantize", "given", "small", "--json"]) == 0
    said = capsys.readouterr()
    assert "scores" not in json.loads(said.out) and "has no evaluations of its own" in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "small"]


@pytest.mark.slow
def test_the_command_compares_scores(tmp_path, monkeypatch, capsys):
    """Of a run with an evaluation: the table has its scores before and after, and OUT can be used as a model."""
    monkeypatch.setattr(int8, "MIN_ELEMENTS", 200)
    monkeypatch.chdir(tmp_path)
    texts = [
        {"text": f"{'ab' if n % 2 else 'gh'} word {'cd' * (n % 3)}", "label": ("no", "yes")[n % 2]} for n in range(40)
    ]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    bert_folder(tmp_path / "whole", ("pooler", "mlm"))
    data = {"source": {"kind": "jsonl", "files": ["texts.jsonl"]},
            "preprocess": {"kind": "classify", "sequence_length": 16, "text_a": "text", "label": "label"}}  # fmt: skip
    config = {
        "pretrained": "whole", "run": {"name": "small", "prepare_workers": 1, "compilation_cache_dir": None},
        "stages": [{
            "name": "classify", "data": data, "objective": {"kind": "classification", "num_labels": 2}, "steps": 80,
            "batch_size": 8, "optimizer": {"kind": "adamw", "learning_rate": 0.01, "warmup_steps": 5},
            "evaluate": [{"kind": "classification", "name": "dev", "data": data}],
        }],
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(config))
    assert main(["train", "run.json"]) == 0
    capsys.readouterr()
    assert main(["quantize", "runs/small", "out", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scores"]["float32"]["dev/accuracy"] == found["scores"]["int8"]["dev/accuracy"] >= 90
    assert 0 < found["largest_error"] < 0.02 and found["bytes"]["int8"] < 0.6 * found["bytes"]["float32"]
    assert main(["predict", "classify", "out", "ab word", "--output", "labels.jsonl"]) == 0
    assert '"yes"' in (tmp_path / "labels.jsonl").read_text()
    assert main(["quantize", "out", "again", "--no-evaluate"]) == 0  # int8 weights are on their own grid already
    first, again = (load_file(tmp_path / name / INT8_WEIGHTS) for name in ("out", "again"))
    assert all(np.allclose(first[name], again[name]) for name in first)
    assert main(["quantize", "runs/small", "out"]) == 2
    assert "already exists" in capsys.readouterr().err
