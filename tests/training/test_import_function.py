"""An imported T5 with ids and layers unlike T5's own generates, trains and exports as transformers' torch model."""

import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import generated_texts  # noqa: E402

from bertjax.config.schema.training import TextToTextObjective  # noqa: E402
from bertjax.errors import UserError  # noqa: E402
from bertjax.evaluation.predictors import generation  # noqa: E402
from bertjax.evaluation.restore import restore  # noqa: E402
from bertjax.objectives import registry  # noqa: E402
from bertjax.tools import convert_hf  # noqa: E402

TEXT = ["the cat and the dog sat on the mat with a hat", "zebras jump over lazy dogs, why do they?"] * 4
START, END, PAD = 5, 3, 2  # in T5: 0, 1, 0


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A folder saved by transformers: gated SiLU layers, another start and another end, beams in its settings."""
    folder, model = tmp_path_factory.mktemp("hf"), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=model, model_type="unigram", vocab_size=50, pad_id=0, unk_id=1,
        bos_id=2, eos_id=END, hard_vocab_limit=False, minloglevel=2, num_threads=1, normalization_rule_name="nmt_nfkc",
    )  # fmt: skip
    config = transformers.T5Config(
        vocab_size=64, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=3,
        relative_attention_num_buckets=8, relative_attention_max_distance=20, feed_forward_proj="gated-silu",
        decoder_start_token_id=START, eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for path, parameter in theirs.named_parameters():
            wild = 0.3 if path.startswith("shared") else 1.0
            parameter.copy_(torch.randn_like(parameter) * wild + path.endswith("layer_norm.weight"))
    theirs.generation_config.update(
        num_beams=3, length_penalty=-1.0, max_new_tokens=7, no_repeat_ngram_size=2, repetition_penalty=1.2,
        min_length=4, early_stopping=True, num_return_sequences=2,
    )  # fmt: skip
    theirs.save_pretrained(folder)
    (folder / "spiece.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 4}))
    return folder


@pytest.fixture(scope="module")
def imported(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "imported"
    notes = convert_hf.import_folder(source, out)
    assert notes[0].startswith("computes in float32, as the weights are stored")
    assert notes[1] == (
        "predict generate decodes as the folder says: beam_size 3, beam_rules transformers, length_penalty -1.0, "
        "early_stopping True, max_new_tokens 7, min_new_tokens 3, no_repeat_ngram_size 2, repetition_penalty 1.2, "
        "num_return_sequences 2"
    )
    return out


def rows(ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    width = max(map(len, ids))
    padded = np.array([[*row, *[PAD] * (width - len(row))] for row in ids], np.int32)
    return padded, np.array([[1] * len(row) + [0] * (width - len(row)) for row in ids], np.int32)


def generated(folder: Path, ids: list[list[int]]) -> list[list[int]]:
    """What transformers' generate answers by the folder's own settings, without start, end and padding."""
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    padded, mask = rows(ids)
    found = theirs.generate(input_ids=torch.tensor(padded).long(), attention_mask=torch.tensor(mask).long())
    assert (found[:, 0] == START).all()
    answers = [row[1:].tolist() for row in found]
    return [row[: row.index(END)] if END in row else row for row in answers]


def test_it_generates_what_transformers_generates(source, imported, capsys):
    restored = restore(imported)
    tokenizer = restored.ctx.tokenizer
    assert (tokenizer.eos_id, restored.ctx.config.model.decoder_start_token_id) == (END, START)
    asked = ["the cat", "zebras jump over the mat", "why", "dogs with a hat <extra_id_1>"]
    expected = generated(source, [[*row, END] for row in tokenizer.encode_batch(asked)])
    assert len({tuple(row) for row in expected}) > 2
    texts = [tokenizer.decode(row) for row in expected]  # two answers for each
    found = generation.TextGenerator(restored).scored_answers(asked, {})
    assert [answer["generated"] for answers in found for answer in answers] == texts
    assert generated_texts.generated(restored, asked) == texts[::2]
    assert len(generation.TextGenerator(restored).scored_answers(asked, {"beam_size": 2})[0]) == 1


def test_its_loss_is_that_of_transformers(source, imported):
    restored = restore(imported)
    targets = [[9, 4, 30, END], [12, END]]
    ids, real = rows([[7, 8, 22, END], [10, 11, 12, 13, 14, END]])
    labels, target_real = rows(targets)
    with torch.no_grad():
        theirs = transformers.T5ForConditionalGeneration.from_pretrained(source).eval()(
            input_ids=torch.tensor(ids).long(), attention_mask=torch.tensor(real).long(),
            labels=torch.tensor(np.where(target_real, labels, -100)).long(),
        )  # fmt: skip
    batch = {
        "input_ids": ids, "segment_ids": real, "target_ids": labels, "target_segment_ids": target_real,
        "target_positions": np.cumsum(target_real, 1) - 1 + 9 * (1 - target_real),
        "target_weights": target_real.astype(np.float32),
    }  # fmt: skip
    objective = registry.build(TextToTextObjective(z_loss=0.0))
    sum_of = jax.jit(
        lambda params: objective.losses(restored.program.build_model(params), batch, None)["target"].train_loss
    )
    with jax.set_mesh(restored.ctx.mesh):
        found = float(sum_of(restored.params)) / target_real.sum()
    assert found == pytest.approx(float(theirs.loss), rel=1e-5)


def test_it_is_exported_with_what_it_came_with(source, imported, tmp_path):
    convert_hf.export_checkpoint(imported, tmp_path / "out")
    for name in ("config.json", "generation_config.json"):
        before, after = (json.loads((folder / name).read_text()) for folder in (source, tmp_path / "out"))
        lost = {key for key, value in before.items() if after.get(key) != value} - {"dtype", "pad_token_id"}
        assert lost <= {"transformers_version"}, name
    ids = [[7, 8, 22, END], [10, 11, 12, 13, 14, END]]
    assert generated(tmp_path / "out", ids) == generated(source, ids)


def test_settings_that_are_not_done_are_said(source, tmp_path, capsys):
    folder = tmp_path / "hf"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {"attention_temperature": 2}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"suppress_tokens": [5], "max_new_tokens": 3}')
    notes = convert_hf.import_folder(folder, tmp_path / "out")
    assert notes[1].endswith("config.json: not known and not used: attention_temperature")
    assert notes[3].endswith("does not do what the folder's generation settings say: suppress_tokens [5]")
    (folder / "generation_config.json").write_text('{"min_length": "4"}')
    with pytest.raises(UserError, match="generation_config.json: min_length is '4', not a number; correct it"):
        convert_hf.import_folder(folder, tmp_path / "other")
    (folder / "generation_config.json").write_text('{"repetition_penalty": 0.0}')
    with pytest.raises(
        UserError, match="generation_config.json, or config.json: repetition_penalty: .* greater than 0"
    ):
        generation.TextGenerator(restore(folder))
    (folder / "generation_config.json").write_text("[")
    with pytest.raises(UserError, match="generation_config.json: not valid JSON"):
        convert_hf.import_folder(folder, tmp_path / "other")


@pytest.mark.parametrize("stored", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_weights_are_computed_in_what_they_are_stored_in(source, tmp_path, stored):
    """transformers 5 loads a folder in the dtype it is stored in; float16 becomes float32, which has all its values."""
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(source, dtype=getattr(torch, stored))
    theirs.save_pretrained(tmp_path / "hf")
    for name in ("spiece.model", "tokenizer_config.json"):
        (tmp_path / "hf" / name).write_bytes((source / name).read_bytes())
    convert_hf.import_folder(tmp_path / "hf", tmp_path / "run")
    restored = restore(tmp_path / "run")
    assert restored.program.compute.dtype == jnp.dtype("bfloat16" if stored == "bfloat16" else "float32")
    chosen = restore(tmp_path / "run", overrides=["run.compute_dtype=float32"])
    assert chosen.program.compute.dtype == jnp.float32
    table = theirs.shared.weight.detach().float().numpy()
    np.testing.assert_array_equal(np.asarray(restored.params["embeddings/word/embedding"]), table)
