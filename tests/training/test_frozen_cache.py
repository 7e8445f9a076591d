"""Gradual unfreezing with the outputs of frozen layers kept or computed at every step: the same bits."""

import re
from collections.abc import Callable, Mapping
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from bertjax.config.loading.load import build, fingerprint, load
from bertjax.config.schema.model import AlbertConfig, BertConfig
from bertjax.config.schema.training import AdamW, ClassificationObjective, SpanQaObjective, Trainable
from bertjax.errors import StoppedSafely, UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.interrupts import StopRequested
from bertjax.models.bert.flops import row_flops
from bertjax.models.peft_options import PeftOptions
from bertjax.objectives.base import FROZEN_STATES
from bertjax.plan.compile import build_stage_program
from bertjax.plan.stages import _stage_info
from bertjax.training import freezing, loop
from bertjax.training.checkpoint.locate import find
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.feature_cache import cache
from bertjax.training.feature_cache.cache import feature_field, jit_encode
from bertjax.training.monitor.tracking import Tracker, read_lines
from bertjax.training.program import TrainProgram
from bertjax.training.step import jit_train_step

LAYERS, ROWS, STEPS = 4, 8, 3


@pytest.fixture(scope="module")
def make(make_program):
    """program(**options) of a model with four layers, whose frozen layers have no dropout."""

    def build(objective: object = None, *, model: BertConfig | None = None, **options: object) -> TrainProgram:
        kind = objective or SpanQaObjective()
        model = model or make_program(kind).model.model_copy(update={"num_hidden_layers": LAYERS})
        program = make_program(kind, model=model, optimizer=AdamW(learning_rate=1e-2), **options)
        return replace(program, fixed_prefix=True)

    return build


def top(program: TrainProgram, count: int) -> tuple[str, ...]:
    """The groups of an episode that trains the heads and the top `count` layers."""
    names = freezing.param_groups(program.abstract_params())
    return freezing.episodes(Trainable(kind="gradual"), names, 100)[count - 1].groups


def run(program: TrainProgram, rows: Mapping[str, np.ndarray], count: int, *, cached: bool) -> tuple:
    """Three steps on rows in other orders than they are encoded in -> (losses, all parameters)."""
    params, groups = program.initialize(jax.random.key(1)), top(program, count)
    kept = {}
    if cached:
        own = program.split_segments(groups)
        assert own.frozen_layers == LAYERS - count
        kept = {FROZEN_STATES: np.asarray(jit_encode(own)(params, jax.device_put(rows, own.batch_sharding())))}
        fields = {name: (x.shape[1:], x.dtype) for name, x in rows.items()}
        assert feature_field(own, fields) == (kept[FROZEN_STATES].shape[1:], kept[FROZEN_STATES].dtype)
    state = jax.block_until_ready(program.init_state(params, groups, jax.random.key(2)))
    step, losses = jit_train_step(program, state), []
    for number in range(STEPS):
        order = np.random.default_rng(number).permutation(len(rows["input_ids"]))
        batch = {name: x[order] for name, x in (rows | kept).items()}
        if cached:  # nothing below reads them
            batch |= {name: np.zeros_like(batch[name]) for name in ("input_ids", "token_type_ids", "positions")}
        state, metrics = step(state, jax.device_put(batch, program.batch_sharding()))
        jax.block_until_ready(state)  # two programs at once may wait for each other's collectives on a CPU
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get({**state.params, **state.frozen})


def differing(one: Mapping, other: Mapping) -> list[str]:
    return [path for path, x in one.items() if x.tobytes() != other[path].tobytes()]


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (1, {}),
        pytest.param(2, {"grad_accum": 2}, marks=pytest.mark.slow),
        pytest.param(2, {"segments": (LAYERS,)}, marks=pytest.mark.slow),
        pytest.param(1, {"dtype": jnp.bfloat16}, marks=pytest.mark.slow),
    ],
)
def test_kept_outputs_give_the_bits_of_computed_ones(make, make_rows, count, options):
    """Packed rows; the trained layers and the head have dropout. Rows train in another order than they are encoded."""
    program, rows = make(**options), make_rows("span", ROWS, groups=2)
    losses, params = run(program, rows, count, cached=True)
    expected, others = run(program, rows, count, cached=False)
    assert losses == expected and len(set(losses)) == STEPS
    assert differing(params, others) == []
    assert set(differing(params, jax.device_get(program.initialize(jax.random.key(1))))) == {
        path for path in params if freezing.param_group(path) in top(program, count)
    }
    if count == 1:  # the control: with dropout in the frozen layers
        assert run(replace(program, fixed_prefix=False), rows, count, cached=False)[0] != expected


def classes(batch: dict) -> dict:
    """Labels in place of spans."""
    kept = {name: x for name, x in batch.items() if "span" not in name and not name.startswith(("start_", "end_"))}
    labels = (batch["start_positions"] % 2).astype(np.int32)
    return kept | {"labels": labels, "label_weights": batch["span_weights"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        ({"data": 2, "fsdp": 2, "tensor": 2}, {"rules": {"sequence": "tensor"}, "grad_accum": 2}),
        ({"dcn": 2, "fsdp": 4}, {"segments": (LAYERS,)}),
    ],
)
def test_kept_outputs_on_a_mesh(make, make_rows, mesh, options):
    rows, kind = classes(make_rows("span", 16, groups=2)), ClassificationObjective()
    shared = {name: value for name, value in options.items() if name == "grad_accum"}
    expected, params = run(make(kind, **shared), rows, 2, cached=False)
    for cached in (True, False):
        losses, others = run(make(kind, **mesh, **options), rows, 2, cached=cached)
        np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-4)
        assert all(np.allclose(x, others[path], rtol=0, atol=2e-3) for path, x in params.items())


def test_a_layer_above_has_the_dropout_that_it_always_has(make, make_rows):
    """Against the layers of the model called one by one: no dropout below, the mask of its own number above."""
    program, rows = make(), make_rows("span", ROWS)
    model = program.split_segments(top(program, 2)).build_model(program.initialize(jax.random.key(1)))
    inputs = [rows[name] for name in ("input_ids", "token_type_ids", "segment_ids", "positions")]
    key = jax.random.key(5)
    x = states = model.hidden_states(*inputs)[LAYERS - 2]
    np.testing.assert_allclose(model.frozen_states(*inputs), states, rtol=0, atol=1e-6)
    for number in (2, 3):
        x = model.layers[number](x, rows["segment_ids"], None, jax.random.fold_in(jax.random.split(key)[1], number))
    np.testing.assert_allclose(model.encode(*inputs, key=key), x, rtol=0, atol=1e-5)
    np.testing.assert_allclose(model.encode_above(states, rows["segment_ids"], key=key), x, rtol=0, atol=1e-5)
    assert np.abs(model.encode(*inputs) - x).max() > 0.1, "the control: without dropout"


def test_a_cached_step_has_no_frozen_layer(make, make_rows):
    """By the compiler's count of FLOPs, its matrix products and the formula for MFU."""
    program, batch = make(), make_rows("span", ROWS)
    states = np.zeros((ROWS, *batch["input_ids"].shape[1:], program.model.hidden_size), np.float32)
    products, flops = {}, {}
    for cached, rows in ((False, batch), (True, batch | {FROZEN_STATES: states})):
        like = program.abstract_state(top(program, 1), jax.random.key(0))
        lowered = jit_train_step(program, like).lower(like, rows)
        products[cached] = len(re.findall(r"dot_general", lowered.as_text()))
        flops[cached] = lowered.cost_analysis()["flops"]
    per_layer = 6  # query, key and value; scores; context; output; and two of the feed-forward layer
    assert products[False] - products[True] == per_layer * (LAYERS - 1) + 1  # and the look-up of token types
    widths = {"input_ids": batch["input_ids"].shape[1]}
    counted = lambda **more: row_flops(program.model, widths | more, ("qa",), top(program, 1), PeftOptions())  # noqa: E731
    saved = ROWS * (counted() - counted(frozen_states=widths["input_ids"]))
    assert 1.0 < (flops[False] - flops[True]) / saved < 1.3
    assert counted() == 2 * counted(frozen_states=32)  # four layers forward and twice one backward, to one and two


def test_where_the_frozen_layers_end(make):
    """Not where the embeddings train, and with shared layers below the first that reads trained parameters."""
    program = make()
    frozen = lambda program, groups: program.split_segments(groups).frozen_layers  # noqa: E731
    assert [frozen(program, top(program, count)) for count in (1, 2, 3, 4)] == [3, 2, 1, 0]
    assert frozen(program, ("embeddings", "layers/3", "heads")) == 0
    assert frozen(replace(program, fixed_prefix=False), top(program, 1)) == 0
    shared = AlbertConfig(
        vocab_size=64, embedding_size=16, hidden_size=32, num_hidden_layers=6, num_hidden_groups=3,
        num_attention_heads=4, intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    albert = make(model=shared)
    assert frozen(albert, ("layers/2", "heads")) == 4 and frozen(albert, ("layers/1", "layers/2", "heads")) == 2


# ---- runs ------------------------------------------------------------------------------------------------------------

RUN_STEPS, FIRST = 30, 13  # of 8 rows: each of the first two episodes reads the 90 rows more than once
GRADUAL = {"kind": "gradual", "cache_frozen": True, "episode_lengths": [13, 13, 4]}


@pytest.fixture(scope="module")
def train(tiny_project, tmp_path_factory, once) -> Callable[..., Path]:
    """Trains the questions of tiny.yaml with three layers from a run, or its pre-training -> the run folder."""
    root = tmp_path_factory.mktemp("frozen")

    def run(name: str, base: Path | None = None, trainable: Mapping[str, Any] = GRADUAL, **more: Any) -> Path:
        config = yaml.safe_load((tiny_project / "tiny.yaml").read_text().replace("5e-3", "0.005"))
        config["run"] |= {"name": name, "root": str(root)} | more
        config["run"]["checkpoint"] = config["run"].get("checkpoint", {}) | {"save_every": 10}
        config["model"]["num_hidden_layers"] = 3
        before, last = config["stages"]
        config["stages"] = [before | {"steps": 1, "evaluate": []}]
        if base is not None:
            last |= {"steps": RUN_STEPS, "evaluate": [], "trainable": dict(trainable), "init_from": str(base)}
            config |= {"tokenizer": {"path": str(base / "tokenizer")}, "stages": [last]}
        with once(), chdir(tiny_project):
            loop.train(build(config), tiny_project, build_evaluators)
        return root / name

    return run


@pytest.fixture(scope="module")
def pretrained(train) -> Path:
    return train("pretrained")


@pytest.fixture(scope="module")
def kept(train, pretrained) -> Path:
    """A run that nothing interrupted. Not to be changed."""
    return train("kept", pretrained)


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in read_lines(run / "metrics.jsonl") if line["kind"] == "train"]


def events(run: Path) -> list[dict]:
    return [line for line in read_lines(run / "metrics.jsonl") if line.get("event") == "features"]


def digests(run: Path) -> dict[str, list]:
    """{array: shape, dtype and digest} in the last checkpoint of a run."""
    checkpoints = CheckpointReader(find(run).folder)
    return checkpoints.items(checkpoints.committed_steps()[-1])[0]["leaves"]


def assert_same(run: Path, other: Path) -> None:
    assert losses_of(run) == losses_of(other) and digests(run) == digests(other)


def test_a_run_with_a_cache_is_one_without(train, pretrained, kept, monkeypatch):
    """Bit for bit; it says what it kept, or why it did not. The last episode has no frozen layers."""
    first, second = events(kept)
    rows = first["rows"]
    assert 90 <= rows < FIRST * 8 and first["bytes"] == second["bytes"] == rows * 48 * 16 * 4
    assert [(e["step"], e["episode"], e["layers"]) for e in (first, second)] == [(0, 0, 2), (FIRST, 1, 1)]
    assert len(losses_of(kept)) == RUN_STEPS and losses_of(kept)[-1] < losses_of(kept)[0]
    notes: list[str] = []
    monkeypatch.setattr(Tracker, "note", lambda self, text: notes.append(text))
    small = train("small", pretrained, GRADUAL | {"cache_gib": 1e-6}, compile_ahead=False)
    assert not events(small)
    assert_same(small, kept)
    (said,) = [note for note in notes if "not cached" in note]
    assert said.startswith("qa: episodes 0, 1: outputs of frozen layers are not cached, every step computes them: ")
    assert "is more than" in said and "stages.qa.trainable.cache_gib" in said
    plain = train("plain", pretrained, {**GRADUAL, "cache_frozen": False})
    assert not events(plain) and losses_of(plain) != losses_of(kept), "the control: frozen layers have dropout"


def test_a_run_that_stops_inside_and_between_episodes(train, pretrained, kept, stop_at):
    for step in (1, FIRST, FIRST + 1, 20):
        stop_at("qa", step)
        with pytest.raises(StoppedSafely, match=f"stopped at step {step} "):
            train("stopped", pretrained)
    stop_at("qa", -1)
    again = train("stopped", pretrained)
    assert [(e["step"], e["layers"]) for e in events(again)] == [(0, 2), (1, 2), (FIRST, 1), (FIRST + 1, 1)]
    assert_same(again, kept)


def test_a_stop_while_rows_are_encoded_saves_the_steps(train, pretrained, kept, monkeypatch):
    encode, calls = cache.encode_rows, []

    def stopped(*args: Any) -> cache.FeatureCache:
        calls.append(args)
        if len(calls) == 2:
            raise StopRequested
        return encode(*args)

    monkeypatch.setattr(cache, "encode_rows", stopped)
    with pytest.raises(StoppedSafely, match=f"stopped at step {FIRST} of stage 'qa', saved"):
        train("between", pretrained)
    assert_same(train("between", pretrained), kept)
    assert len(calls) == 3, "only the second episode's rows are encoded again"


@pytest.mark.parametrize(
    ("model", "trainable", "words"),
    [
        ({}, {"embeddings": "always"}, "cache_frozen needs frozen embeddings"),
        ({"family": "gpt", "type_vocab_size": 0}, {}, "trainable.cache_frozen: not for a gpt model"),
        ({}, {"cache_frozen": "maybe"}, "cache_frozen"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_project, model, trainable, words):
    config = yaml.safe_load((tiny_project / "tiny.yaml").read_text().replace("5e-3", "0.005"))
    config["stages"] = config["stages"][1:]
    config["model"] |= model
    config["stages"][0] |= {"trainable": {"kind": "gradual", "cache_frozen": True} | trainable, "init_from": "scratch"}
    with pytest.raises(UserError, match=words) as caught:
        build(config)
    assert "\n" not in str(caught.value)


def test_a_t5_keeps_no_frozen_layers(tiny_t5_project):
    with pytest.raises(UserError, match="trainable.cache_frozen: not for a t5 model"):
        load(tiny_t5_project / "tiny.yaml", ["stages.qa.trainable={kind: gradual, cache_frozen: true}"])


def test_dropout_of_frozen_layers_is_part_of_a_run(tiny_project):
    def of(trainable: Any) -> str:
        config = yaml.safe_load((tiny_project / "tiny.yaml").read_text().replace("5e-3", "0.005"))
        config["stages"][1]["trainable"] = trainable
        return fingerprint(build(config))

    kept = {"kind": "gradual", "cache_frozen": True}
    assert of(kept) == of(kept | {"cache_gib": 2}) != of("gradual") == of({"kind": "gradual", "cache_frozen": False})


def test_a_plan_says_that_its_step_computes_frozen_layers(kept):
    config = load(kept / "config.yaml")
    of = lambda episode: _stage_info(build_stage_program(config, config.stages[0], jax.devices()[:1], episode))["notes"]  # noqa: E731
    (note,) = of(0)
    assert "this step computes its frozen layers" in note and "3.07 kB a row" in note  # 48 positions of 16 floats
    assert of(2) == []
