"""Adapters of a T5: what trains, how they start, and checkpoints that hold nothing else."""

import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from t5_models import make_t5, rows
from t5_project import CONFIG, write_project

from bertjax.config.loading.load import build
from bertjax.config.schema.training import Trainable
from bertjax.errors import StoppedSafely, UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.restore import restore
from bertjax.tools.evaluate import evaluate_command
from bertjax.tools.inspect import inspect_command
from bertjax.training import freezing, loop
from bertjax.training.checkpoint import adapters
from bertjax.training.checkpoint.integrity import json_sha256
from bertjax.training.checkpoint.locate import find
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.monitor.tracking import read_lines
from bertjax.training.step import jit_train_step

ADAPTERS = {"kind": "adapters", "adapter_size": 4}

# ---- the model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norms", ["paper", "houlsby"])
def test_what_trains(norms):
    """paper: "only the adapter layer and layer normalization parameters are updated"; houlsby: variable_filter."""
    program = make_t5(adapter_size=4, dropout=0.0)
    names = freezing.param_groups(program.abstract_params())
    (episode,) = freezing.episodes(Trainable(kind="adapters", adapter_norms=norms), names, 4)
    state = program.init_state(program.initialize(jax.random.key(0)), episode.groups, jax.random.key(1))
    wanted = {p for p in program.abstract_params() if "/adapter/" in p or (norms == "paper" and "/norm/" in p)}
    assert set(state.params) == wanted
    before = jax.device_get({**state.params, **state.frozen})
    step = jit_train_step(program, state)
    for _ in range(2):  # 1e-2 from an output matrix away
        state, _ = step(state, jax.device_put(rows(4), program.batch_sharding()))
    after = jax.device_get({**state.params, **state.frozen})
    assert {p for p in after if after[p].tobytes() != before[p].tobytes()} == wanted


def logits(params: dict, **options: object) -> np.ndarray:
    program = make_t5(dropout=0.0, **options)

    @jax.jit
    def forward(params: dict, batch: dict) -> jax.Array:
        model = program.build_model(params)
        hidden = model.encode(batch["input_ids"], batch["segment_ids"])
        decoded = model.decode(batch["target_ids"], batch["target_segment_ids"], hidden, batch["segment_ids"])
        return model.logits(decoded)

    return np.asarray(forward(params, rows(2)))


def test_near_identity_starts_as_the_model_without_adapters():
    """arXiv 1902.00751: then the original network is unaffected when training starts; the reference's is changed."""
    without = make_t5(dropout=0.0).initialize(jax.random.key(0))
    found = {}
    for init in ("near_identity", "reference"):
        adapted = make_t5(adapter_size=4, adapter_init=init).initialize(jax.random.key(1))
        found[init] = logits(adapted | without, adapter_size=4)
        kernels = [x for path, x in adapted.items() if "/adapter/" in path and path.endswith("/kernel")]
        assert len(kernels) == 8 and all(np.std(x) > 0 for x in kernels)
        if init == "near_identity":
            assert all(np.abs(x).max() <= 2e-3 for x in kernels)
    plain = logits(without)
    assert np.abs(found["near_identity"] - plain).max() < 1e-3 < np.abs(found["reference"] - plain).max()


# ---- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def train(tmp_path_factory, once) -> Callable[..., Path]:
    """Trains tiny.yaml, or only its last stage from `base`, on other settings -> the run folder."""
    home = tmp_path_factory.mktemp("t5")
    write_project(home)

    def run(
        name: str, base: Path | None = None, trainable: Any = ADAPTERS, start: str | None = None,
        adapter_base: Path | None = None, **run: Any,
    ) -> Path:  # fmt: skip
        tree = yaml.safe_load(CONFIG)
        tree["run"] |= {"name": name, "root": str(home / "runs"), **run}
        if base is not None:
            kept = base.parents[1] if base.parent.name == "checkpoints" else base
            tree["tokenizer"]["path"] = str(kept / "tokenizer")
            tree["stages"] = [tree["stages"][-1] | {"init_from": start or str(base), "trainable": trainable}]
            tree["stages"][0] |= {"adapter_base": str(adapter_base)} if adapter_base else {}
        with once(), chdir(home):
            loop.train(build(tree), home, build_evaluators)
        return home / "runs" / name

    return run


@pytest.fixture(scope="module")
def whole(train) -> Path:
    """Pre-training and adapters, uninterrupted. Not to be changed."""
    return train("whole")


@pytest.fixture(scope="module")
def pretrained(whole) -> Path:
    return whole / "checkpoints" / "00-pretrain"


@pytest.fixture(scope="module")
def apart(train, pretrained) -> Path:
    """Adapters as a run of their own. Not to be changed."""
    return train("apart", pretrained)


def leaves(run: Path, step: int | None = None) -> dict[str, list]:
    """{path: shape, dtype and digest} of a checkpoint's arrays."""
    found = find(run, step=step)
    checkpoints = CheckpointReader(found.folder)
    return checkpoints.items(checkpoints.committed_steps()[-1] if step is None else step)[0]["leaves"]


def meta(run: Path) -> dict:
    checkpoints = CheckpointReader(find(run).folder)
    return checkpoints.meta()


def score(run: Path) -> float:
    return next(x for x in read_lines(run / "metrics.jsonl") if x["kind"] == "eval")["scores"]["target_loss"]


def evaluated(run: Path, once: Callable, home: Path | None = None) -> float:
    with once(), chdir(home or run.parents[1]):
        return evaluate_command(run, None, None, None, [])["scores"]["loss"]["target_loss"]


def test_a_checkpoint_holds_what_trains_and_names_its_base(whole, pretrained, apart):
    for run, base in ((whole, {"stage": "00-pretrain"}), (apart, {"path": str(pretrained)})):
        held = {path.removeprefix("params/") for path in leaves(run) if path.startswith("params/")}
        assert held and all("/adapter/" in path or path.endswith("/norm/scale") for path in held)
        assert not any(path.endswith("embedding") for path in leaves(run))
        about = meta(run)["base"]
        assert about.items() >= (base | {"step": 2}).items()
        below = {path: x for path, x in leaves(pretrained).items() if path[:7] == "params/"}
        frozen = {p.removeprefix("params/"): x[2] for p, x in below.items() if p.removeprefix("params/") not in held}
        assert about["digest"] == json_sha256(frozen)


def test_reading_gives_the_model_that_was_scored(whole, apart, once):
    for run in (whole, apart):
        assert evaluated(run, once) == pytest.approx(score(run), abs=1e-6)
    restored = restore(apart)
    assert set(restored.params) == set(restored.program.abstract_params())
    assert "base: " in inspect_command(apart, [], None, False)


def test_a_stopped_stage_goes_on_bit_for_bit(train, whole, stop_at):
    stop_at("tune", 3)
    with pytest.raises(StoppedSafely):
        train("stopped")
    stop_at("tune", -1)
    assert leaves(train("stopped")) == leaves(whole)


@pytest.mark.slow
def test_adapters_go_on_from_adapters(train, apart, once):
    """The base of the second is the first, whose base is the pre-trained run."""
    chained = train("chained", apart)
    assert meta(chained)["base"]["path"] == f"{apart}/checkpoints/00-tune"
    assert evaluated(chained, once) == pytest.approx(score(chained), abs=1e-6)


@pytest.mark.slow
def test_one_base_carries_many_and_a_run_may_be_moved(train, whole, pretrained, once, tmp_path):
    other = train("other", pretrained, ADAPTERS | {"adapter_norms": "houlsby"})
    held = [path for path in leaves(other) if path.startswith("params/")]
    assert held and all("/adapter/" in path for path in held)
    moved = shutil.copytree(whole, tmp_path / "moved")
    assert evaluated(moved, once, whole.parents[1]) == pytest.approx(score(whole), abs=1e-6)


@pytest.mark.slow
def test_a_missing_or_changed_base_is_said_in_one_line(train, whole, tmp_path):
    base = shutil.copytree(whole, tmp_path / "base")
    run = train("lost", base / "checkpoints" / "00-pretrain")
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"^\S+: holds only what was trained, .* be read from \S+/00-pretrain step 2;"):
        restore(run)
    changed = shutil.copytree(train("seed", seed=1), base)
    assert (changed / "checkpoints" / "00-pretrain" / "2").is_dir()
    with pytest.raises(
        UserError, match=r"step 2 no longer has the weights they were trained on; put those back, or name .*--base PATH"
    ):
        restore(run)


def test_a_lone_step_finds_its_base_by_content(whole, tmp_path, one_device):
    """Beside it under its name, or wherever a person says; what counts is the digest."""
    last = str(restore(whole).step)
    lone = shutil.copytree(whole / "checkpoints" / "01-tune" / last, tmp_path / "adapters")
    said = rf"^{lone}: holds only what was trained, .*\(digest [0-9a-f]{{12}}\): --base PATH"
    with pytest.raises(UserError, match=said):
        restore(lone)
    wanted = restore(whole).params
    for base in (whole / "checkpoints" / "00-pretrain", whole / "checkpoints" / "00-pretrain" / "2", whole):
        found = restore(lone, base_model=base).params
        assert all(np.array_equal(found[path], x) for path, x in wanted.items())
    with pytest.raises(UserError, match="needs no base"):
        restore(whole, stage="pretrain", base_model=whole)
    shutil.copytree(whole / "checkpoints" / "00-pretrain", tmp_path / "00-pretrain")
    assert restore(lone).params.keys() == wanted.keys()
    (lone.parent / "00-pretrain").rename(tmp_path / "other-name")
    assert restore(lone, base_model=tmp_path / "other-name").step == restore(whole).step


def test_where_adapter_base_said_the_base_is(tmp_path):
    known = adapters._candidate_paths(
        {"path": "/gone/01-tune", "init_base": str(tmp_path / "base")}, tmp_path / "run" / "00-more"
    )
    assert known[:2] == [Path("/gone/01-tune"), tmp_path / "base"]


@pytest.mark.slow
def test_a_run_goes_on_and_others_start_with_a_base_that_moved(train, whole, apart, stop_at, tmp_path):
    source = shutil.copytree(whole, tmp_path / "base") / "checkpoints" / "00-pretrain"
    tokenizer = shutil.copytree(whole / "tokenizer", tmp_path / "kept" / "tokenizer").parent
    stop_at("tune", 3)
    with pytest.raises(StoppedSafely):
        train("moving", source)
    stop_at("tune", -1)
    moved = (tmp_path / "base").rename(tmp_path / "elsewhere")
    shutil.copytree(tokenizer / "tokenizer", tmp_path / "base" / "tokenizer")
    with pytest.raises(UserError, match="stages.NAME.adapter_base"):
        train("moving", source)
    run = train("moving", source, adapter_base=moved / "checkpoints" / "00-pretrain")
    assert leaves(run) == leaves(apart)
    with pytest.raises(UserError, match="stages.NAME.adapter_base"):
        train("on-top", run)
    on_top = train("on-top", run, adapter_base=moved)
    assert restore(on_top).step == restore(run, base_model=moved).step  # it knows where its base was said to be


def test_other_stages_refuse_adapters(train, apart):
    for trainable, has in (("all", "this stage has none"), (ADAPTERS | {"adapter_size": 8}, "are of size 8")):
        with pytest.raises(UserError, match=f"has adapters of size 4, .*{has}; set trainable.kind=adapters") as error:
            train("refused", apart, trainable)
        assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("why", ["scratch", "asked"])
def test_checkpoints_that_hold_everything(train, pretrained, once, why):
    """From scratch there is no base; else where the configuration says so."""
    trainable = ADAPTERS | ({"adapter_only_checkpoints": False} if why == "asked" else {})
    run = train(why, pretrained, trainable, start="scratch" if why == "scratch" else None)
    assert "base" not in meta(run) and "params/embeddings/word/embedding" in leaves(run)
    start = next(x for x in read_lines(run / "metrics.jsonl") if x.get("event") == "start")
    assert ("checkpoints hold all of them" in start["init"]) == (why == "scratch")
    assert evaluated(run, once) == pytest.approx(score(run), abs=1e-6)
