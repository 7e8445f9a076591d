"""How a configuration becomes a job: execution on each platform, tokenizer, run folder, what checkpoints say."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.config.loading.load import build, build_saved, load
from bertjax.config.schema.run import Config, MeshConfig
from bertjax.data.tokenizers.load import from_file
from bertjax.errors import StorageError, UserError
from bertjax.parallel.mesh import make_mesh
from bertjax.training import program, run_context, validate
from bertjax.training.checkpoint.stage_files import run_stages
from bertjax.training.run_context import RunContext

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
    monkeypatch.setattr(program, "cpu_has_bfloat16", lambda: request.param)
    return request.param


def test_precision_follows_the_chip(bfloat16_units):
    for platform, expected in (("cpu", bfloat16_units), ("cuda", True), ("rocm", True), ("gpu", True), ("tpu", True)):
        found = program.compute_options(config(), devices(platform))
        assert found.dtype == (jnp.bfloat16 if expected else jnp.float32), platform
        assert found.platform == {"cpu": "cpu", "tpu": "tpu"}.get(platform, "gpu")


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_precision_that_is_asked_for_is_taken(bfloat16_units, platform, dtype):
    assert program.compute_options(config(run={"compute_dtype": dtype}), devices(platform)).dtype == jnp.dtype(dtype)


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
    assert (
        program.compute_options(config(model=small, run={"segments": wanted}), devices(platform)).segments == expected
    )


def test_other_execution_choices_are_handed_on():
    run = {"attention": "xla", "dropout_rng": "threefry", "remat": "dots"}
    found = program.compute_options(config(run=run), devices("cpu"))
    assert (found.attention, found.dropout_rng, found.remat) == ("xla", "threefry", "dots")


# ---- tokenizer ------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return tmp_path


def make_job(home: Path, **sections: dict) -> RunContext:
    made = config(home / "runs", **sections)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return RunContext(made, home, mesh, from_file(home / "vocab.txt"))


def test_a_vocabulary_that_the_model_cannot_hold_is_a_user_error(home):
    assert run_context.load_tokenizer(config(home), home).vocab_size == len(PIECES) == 25
    with pytest.raises(UserError, match=r"^model.vocab_size: 24 is less than .* 25 pieces; set model.vocab_size=25"):
        run_context.load_tokenizer(config(home, model={"vocab_size": 24}), home)


# ---- run folder -----------------------------------------------------------------------------------------------------


def test_the_run_folder_holds_what_made_it(home):
    ctx = make_job(home)
    run_context.create_run_dir(ctx)
    folder = home / "runs" / "one"
    assert load(folder / "config.yaml") == ctx.config
    assert from_file(folder / "tokenizer").sha256 == ctx.tokenizer.sha256
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["mesh"] == {"dcn": 1, "data": 1, "fsdp": 1, "tensor": 1}
    assert not list(folder.rglob("*.partial"))
    validate.check_settings(run_stages(ctx.config, home))
    run_context.create_run_dir(ctx)


@pytest.mark.parametrize(
    "sections",
    [
        {"run": {"log_every": 1, "compute_dtype": "bfloat16", "remat": "full", "max_nonfinite_steps": 7}},
        {"run": {"prefetch": 9}},
        {"mesh": {"data": 1, "fsdp": -1}},
    ],
)
def test_how_it_runs_may_change_between_starts(home, sections):
    run_context.create_run_dir(make_job(home))
    validate.check_settings(run_stages(config(home / "runs", **sections), home))


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
    run_context.create_run_dir(make_job(home))
    before = (home / "runs" / "one" / "config.yaml").read_text()
    with pytest.raises(UserError) as error:
        validate.check_settings(run_stages(config(home / "runs", **sections), home))
    line = str(error.value)
    assert words in line and "config.yaml: this run has other settings" in line and "run.name" in line
    assert "\n" not in line and (home / "runs" / "one" / "config.yaml").read_text() == before


def test_another_tokenizer_is_refused(home):
    run_context.create_run_dir(make_job(home))
    (home / "vocab.txt").write_text("\n".join([*PIECES, "ab"]) + "\n")
    with pytest.raises(UserError, match="tokenizer: this run has another tokenizer"):
        run_context.create_run_dir(make_job(home))


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "sha256.json"])
def test_a_damaged_copy_of_the_tokenizer_is_written_again(home, capsys, name):
    run_context.create_run_dir(make_job(home))
    path = home / "runs" / "one" / "tokenizer" / name
    before = path.read_bytes()
    path.write_bytes(before.replace(b"j", b"k"))
    run_context.create_run_dir(make_job(home))
    assert f"note: {path.parent}: incomplete or damaged; it is written again" in capsys.readouterr().err
    assert path.read_bytes() == before
    run_context.create_run_dir(make_job(home))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", [b"\xff\xfe", b"model: {hidden", b"", b"stages: []\n"])
def test_a_damaged_copy_of_the_configuration_decides_nothing(home, capsys, content):
    ctx = make_job(home)
    run_context.create_run_dir(ctx)
    path = home / "runs" / "one" / "config.yaml"
    path.write_bytes(content)
    validate.check_settings(run_stages(ctx.config, home))
    run_context.create_run_dir(ctx)
    assert f"note: {path}: damaged (" in capsys.readouterr().err and load(path) == ctx.config


def test_a_folder_that_cannot_be_written_is_a_storage_error(home):
    (home / "runs").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match=r"runs/one: cannot be written"):
        run_context.create_run_dir(make_job(home))


def test_a_compilation_cache_of_others_is_not_used(home, capsys, monkeypatch):
    """It holds native code, which jax runs."""
    used = []
    monkeypatch.setattr(jax.config, "update", lambda key, value: used.append((key, value)))
    folder = home / "xla"
    made = config(home / "runs", run={"compilation_cache_dir": str(folder)})
    run_context.enable_compilation_cache(made)
    assert used == [("jax_compilation_cache_dir", str(folder))]  # the control
    assert folder.stat().st_mode & 0o777 == 0o700
    for mode in (0o777, 0o770, 0o1777):
        folder.chmod(mode)
        run_context.enable_compilation_cache(made)
        said = capsys.readouterr().err
        assert said == (
            f"note: {folder}: compiled programs are not cached (others can write there: chmod go-w); set "
            "run.compilation_cache_dir to null or another folder\n"
        )
    folder.chmod(0o755)
    of_another = SimpleNamespace(stat=lambda: SimpleNamespace(st_uid=4711, st_mode=0o40700))
    assert "belongs to another user, 4711" in run_context._find_other_writers(of_another)
    assert len(used) == 1


def test_a_checkpoint_describes_itself(home):
    ctx = make_job(home)
    made = program.stage_program(ctx.config, ctx.config.stages[0], ctx.mesh, 4)
    meta = json.loads(json.dumps(run_context.checkpoint_meta(ctx, made, 0, 3)))
    assert (meta["stage"], meta["stage_name"], meta["step"]) == (0, "pretrain", 3)
    assert meta["heads"] == ["mlm", "nsp"] and meta["num_labels"] == 2
    assert meta["tokenizer_sha256"] == ctx.tokenizer.sha256
    assert build_saved(meta["config"], where="meta") == ctx.config
