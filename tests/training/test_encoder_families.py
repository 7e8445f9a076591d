"""RoBERTa, ELECTRA and ALBERT through whole runs: from a folder, frozen, carried on, restored and exported."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from hf_folders import PIECES, assert_same_tensors
from safetensors.numpy import load_file

from bertjax.cli.main import main
from bertjax.config.loading.load import load
from bertjax.config.schema.model import AlbertConfig, ElectraConfig, RobertaConfig
from bertjax.config.schema.training import MlmNspObjective
from bertjax.data.tokenizers.load import Tokenizer, build_wordpiece
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.restore import restore
from bertjax.interop import hf_folder
from bertjax.models import registry
from bertjax.training import freezing, loop
from bertjax.training.step import jit_train_step

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24,
         "max_position_embeddings": 34}  # fmt: skip
MODELS = {
    "roberta": (RobertaConfig(**SIZES, model_type="xlm-roberta"), ("mlm",)),
    "electra": (ElectraConfig(**SIZES, embedding_size=8), ("discriminator",)),
    "albert": (AlbertConfig(**SIZES, embedding_size=8, num_hidden_groups=2), ("mlm", "sop")),
}
CONFIG = """\
pretrained: hf
run: {name: one, tensorboard: false, compilation_cache_dir: null, prepare_workers: 1, log_every: 1}
stages:
  - name: classify
    data:
      source: {kind: jsonl, files: [rows.jsonl]}
      preprocess: {kind: classify, sequence_length: 16}
    objective: {kind: classification, num_labels: 2}
    trainable: {kind: gradual, episodes: 2}
    steps: 4
    batch_size: 8
    optimizer: {kind: adamw, learning_rate: 1e-2, warmup_steps: 0, layer_decay: 0.5}
"""


def write_folder(out: Path, family: str, padding: int | None = None) -> Path:
    """A Hugging Face folder with random weights; RoBERTa's has padding at 1, as its own tokenizers do."""
    model, heads = MODELS[family]
    fresh = jax.jit(registry.init_params, static_argnums=(0, 1, 2))(model, heads, 2, jax.random.key(0))
    pieces = [PIECES[1], PIECES[0], *PIECES[2:]] if (padding or getattr(model, "pad_token_id", 0)) else PIECES
    tokenizer = Tokenizer(build_wordpiece({piece: i for i, piece in enumerate(pieces)}, lowercase=True), "test")
    params = {path: np.asarray(x) for path, x in fresh.items()}
    hf_folder.save_folder(out, params, model, heads, tokenizer=tokenizer)
    return out


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"a b {word} c", "label": word} for word in ("word", "d e", "word !", "h")[:2]] * 8
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    Path("c.yaml").write_text(CONFIG)
    return tmp_path


@pytest.mark.parametrize("family", [pytest.param("roberta", marks=pytest.mark.slow),
                                    pytest.param("electra", marks=pytest.mark.slow), "albert"])  # fmt: skip
def test_a_mesh_changes_nothing(make_program, make_rows, family):
    """FSDP, tensor parallelism and sharded positions give the losses and parameters of one device."""
    model = MODELS[family][0].model_copy(update={"vocab_size": 64, "initializer_range": 0.1})
    batches = [make_rows("pairs", 8, seed=seed) for seed in range(3)]

    def run(**options: object) -> tuple[list[float], dict[str, np.ndarray]]:
        program = make_program(MlmNspObjective(nsp_weight=0), model=model, **options)
        groups = freezing.param_groups(program.abstract_params())
        state = program.init_state(program.initialize(jax.random.key(1)), groups, jax.random.key(2))
        step, losses = jit_train_step(program, state), []
        for batch in batches:
            state, metrics = step(state, jax.device_put(batch, program.batch_sharding()))
            losses.append(float(metrics["loss"]))
        return losses, jax.device_get(state.params)

    (expected, params), (losses, found) = run(), run(fsdp=2, tensor=2, segments=(4,), rules={"sequence": "tensor"})
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    for path, x in params.items():
        if "key" not in path and not path.endswith("qkv/bias"):  # the bias of keys has a gradient of rounding
            np.testing.assert_allclose(found[path], x, atol=5e-4, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
def test_fine_tuning_from_a_folder_and_export(family, here, capsys):
    write_folder(Path("hf"), family)
    config = load("c.yaml")
    assert config.model == MODELS[family][0]
    loop.train(config, Path(), build_evaluators)
    printed = capsys.readouterr()
    said = printed.out + printed.err
    assert f"parameters in {2 if family == 'albert' else 3} groups" in said  # the upper half of the layers, and heads
    restored = restore(Path("runs/one"))
    assert {*restored.program.heads} == {"classifier", *MODELS[family][1]}
    begin = hf_folder.load_params(Path("hf"), config.model)
    for path, x in begin.items():  # the heads that the stage does not read
        if path.startswith("heads/") and path.split("/")[1] != "pooler":
            np.testing.assert_array_equal(np.asarray(restored.params[path]), x, err_msg=path)
    lowest = "layers/0/mlp/output/kernel"
    assert not np.array_equal(np.asarray(restored.params[lowest]), begin[lowest])

    assert main(["export", "runs/one", "out"]) == 0
    written = json.loads(Path("out/config.json").read_text())
    assert written["model_type"] == {"roberta": "xlm-roberta"}.get(family, family)
    assert written["architectures"][0].endswith("ForSequenceClassification")
    assert written["id2label"] == {"0": "d e", "1": "word"}
    capsys.readouterr()
    text = ["a b word c", "--json"]
    assert main(["predict", "classify", "runs/one", *text]) == 0
    ours = json.loads(capsys.readouterr().out)
    assert main(["predict", "classify", "out", *text]) == 0
    assert json.loads(capsys.readouterr().out) == ours


@pytest.mark.parametrize("family", MODELS)
def test_import_export_and_inspect(family, here, capsys):
    write_folder(Path("hf"), family)
    assert main(["import", "hf", "runs/imported"]) == 0
    assert main(["inspect", "runs/imported"]) == 0
    said = capsys.readouterr()
    size = sum(x.size for x in load_file("hf/model.safetensors").values())
    assert f"{size:,}" in said.out + said.err
    assert main(["export", "runs/imported", "out"]) == 0
    assert_same_tensors(Path("hf"), Path("out"))
    before, after = (json.loads(Path(f"{folder}/config.json").read_text()) for folder in ("hf", "out"))
    assert after == before
    assert main(["predict", "embed", "hf", "a b word"]) == 0


def test_padding_must_be_that_of_the_tokenizer(here, capsys):
    write_folder(Path("hf"), "roberta")
    described = json.loads(Path("hf/config.json").read_text())
    Path("hf/config.json").write_text(json.dumps(described | {"pad_token_id": 0}))
    for command in (["import", "hf", "runs/x"], ["train", "c.yaml"]):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert "pad_token_id" in line and not Path("runs/x").exists()
