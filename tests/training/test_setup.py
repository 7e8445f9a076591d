"""How a configuration becomes a job: execution on each platform, tokenizer, run folder, what checkpoints say."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.config.load import build, load
from bertjax.config.schema import Config, Mesh
from bertjax.data import tokenizers
from bertjax.errors import StorageError, UserError
from bertjax.parallel import mesh as meshes
from bertjax.training import preflight, setup
from bertjax.training.setup import Job

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", *(f"##{c}" for c in "abcdefghij")]


def config(root: Path | str = "runs", **sections: dict) -> Config:
    """A valid configuration with these keys changed."""
    data = {
        "model": {
            "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
            "intermediate_size": 32, "max_position_embeddings": 32,
        },
        "tokenizer": {"path": "vocab.txt"},
        "run": {"name": "one", "root": str(root)},
        "stages": [
            {"name": "pretrain", "steps": 4, "batch_size": 8,
             "data": {"source": {"files": ["text.txt"]}, "preprocess": {"sequence_length": 32}}}
        ],
    }  # fmt: skip
    for name, changes in sections.items():
        data[name] = {**data.get(name, {}), **changes}
    return build(data)


def devices(platform: str) -> SimpleNamespace:
    return SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)], object))


@pytest.fixture(params=[True, False], ids=["with_bfloat16", "without_bfloat16"])
def bfloat16_units(request, monkeypatch) -> bool:
    monkeypatch.setattr(setup, "cpu_multiplies_bfloat16", lambda: request.param)
    return request.param


def test_precision_follows_the_chip(bfloat16_units):
    for platform, expected in (("cpu", bfloat16_units), ("cuda", True), ("rocm", True), ("gpu", True), ("tpu", True)):
        found = setup.execution(config(), devices(platform))
        assert found.dtype == (jnp.bfloat16 if expected else jnp.float32), platform
        assert found.platform == {"cpu": "cpu", "tpu": "tpu"}.get(platform, "gpu")


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_precision_that_is_asked_for_is_taken(bfloat16_units, platform, dtype):
    assert setup.execution(config(run={"compute_dtype": dtype}), devices(platform)).dtype == jnp.dtype(dtype)


@pytest.mark.parametrize(
    ("platform", "layers", "wanted", "expected"),
    [
        ("cpu", 4, "auto", ()),
        ("cuda", 24, "auto", ()),
        ("cuda", 48, "auto", (48,)),
        ("tpu", 4, "auto", (4,)),
        ("tpu", 4, "list", ()),
        ("cpu", 4, "scan", (4,)),
        ("cpu", 4, [1, 3], (1, 3)),
    ],
)
def test_how_the_stack_is_cut(platform, layers, wanted, expected):
    small = {"num_hidden_layers": layers}
    assert setup.execution(config(model=small, run={"segments": wanted}), devices(platform)).segments == expected


def test_other_execution_choices_are_handed_on():
    run = {"attention": "xla", "dropout_rng": "threefry", "remat": "dots"}
    found = setup.execution(config(run=run), devices("cpu"))
    assert (found.attention, found.dropout_rng, found.remat) == ("xla", "threefry", "dots")


# ---- tokenizer ------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return tmp_path


def make_job(home: Path, **sections: dict) -> Job:
    made = config(home / "runs", **sections)
    mesh = meshes.make_mesh(Mesh(), jax.devices()[:1])
    return Job(made, home, mesh, tokenizers.from_file(home / "vocab.txt"))


def test_a_vocabulary_that_the_model_cannot_hold_is_a_user_error(home):
    assert setup.load_tokenizer(config(home), home).vocab_size == len(PIECES) == 25
    with pytest.raises(UserError, match=r"^model.vocab_size: 24 is less than .* 25 pieces; set model.vocab_size=25"):
        setup.load_tokenizer(config(home, model={"vocab_size": 24}), home)


# ---- run folder -----------------------------------------------------------------------------------------------------


def test_the_run_folder_holds_what_made_it(home):
    job = make_job(home)
    setup.open_run_folder(job)
    folder = home / "runs" / "one"
    assert load(folder / "config.yaml") == job.config
    assert tokenizers.from_file(folder / "tokenizer").sha256 == job.tokenizer.sha256
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["mesh"] == {"dcn": 1, "data": 1, "fsdp": 1, "tensor": 1}
    assert not list(folder.rglob("*.partial"))
    preflight.check_settings(job.config)
    setup.open_run_folder(job)


@pytest.mark.parametrize(
    "sections",
    [
        {"run": {"log_every": 1, "compute_dtype": "bfloat16", "remat": "full", "prefetch": 9, "max_bad_steps": 7}},
        {"mesh": {"data": 1, "fsdp": -1}},
    ],
)
def test_how_it_runs_may_change_between_starts(home, sections):
    setup.open_run_folder(make_job(home))
    preflight.check_settings(config(home / "runs", **sections))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"model": {"num_hidden_layers": 5}}, "model.num_hidden_layers: 4 -> 5"),
        ({"model": {"hidden_dropout_prob": 0.0}}, "model.hidden_dropout_prob: 0.1 -> 0.0"),
        ({"run": {"seed": 3}}, "seed: 0 -> 3"),
        ({"tokenizer": {"lowercase": False}}, "tokenizer.lowercase: true -> false"),
        ({"model": {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64}}, "and 1 more"),
    ],
)
def test_other_settings_are_refused_by_name(home, sections, words):
    setup.open_run_folder(make_job(home))
    before = (home / "runs" / "one" / "config.yaml").read_text()
    with pytest.raises(UserError) as error:
        preflight.check_settings(config(home / "runs", **sections))
    line = str(error.value)
    assert words in line and "config.yaml: this run has other settings" in line and "run.name" in line
    assert "\n" not in line and (home / "runs" / "one" / "config.yaml").read_text() == before


def test_another_tokenizer_is_refused(home):
    setup.open_run_folder(make_job(home))
    (home / "vocab.txt").write_text("\n".join([*PIECES, "ab"]) + "\n")
    with pytest.raises(UserError, match="tokenizer: this run has another tokenizer"):
        setup.open_run_folder(make_job(home))


def test_a_folder_that_cannot_be_written_is_a_storage_error(home):
    (home / "runs").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match=r"runs/one: cannot be written"):
        setup.open_run_folder(make_job(home))


def test_a_failed_write_leaves_the_old_file(home, monkeypatch):
    path = home / "kept.txt"
    setup.write(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(setup.os, "replace", fail)
    with pytest.raises(OSError):
        setup.write(path, "new")
    assert path.read_text() == "old"


def test_a_checkpoint_describes_itself(home):
    job = make_job(home)
    program = job.program(job.config.stages[0], 4)
    meta = json.loads(json.dumps(setup.checkpoint_meta(job, program, 0, 3)))
    assert (meta["stage"], meta["stage_name"], meta["step"]) == (0, "pretrain", 3)
    assert meta["heads"] == ["mlm", "nsp"] and meta["num_labels"] == 2
    assert meta["tokenizer_sha256"] == job.tokenizer.sha256
    assert setup.config_of(meta, home) == job.config
