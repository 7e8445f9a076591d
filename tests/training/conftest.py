"""Tiny programs on any part of the eight devices and rows for them; runs of the tiny project, trained once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.config.loading.load import load
from bertjax.config.schema.model import BertConfig
from bertjax.config.schema.run import MeshConfig
from bertjax.config.schema.training import AdamW, MlmNspObjective
from bertjax.evaluation.evaluators import loss as evaluate_loss
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.models.compute_options import ComputeOptions
from bertjax.objectives import registry
from bertjax.parallel import mesh
from bertjax.parallel.mesh import make_mesh
from bertjax.parallel.mesh_shape import merge_rules
from bertjax.training import loop, step
from bertjax.training.program import TrainProgram
from bertjax.training.state import TrainState
from bertjax.training.triggers import episode_steps

VOCABULARY, LENGTH = 64, 32
TINY = BertConfig(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=LENGTH, initializer_range=0.1,
)  # fmt: skip
AXES = {"dcn": 1, "data": 1, "fsdp": 1, "tensor": 1}


@pytest.fixture(scope="session")
def make_program() -> Callable[..., TrainProgram]:
    """program(dcn=, data=, fsdp=, tensor=, ...) on as many devices as these axes need."""

    def make(
        objective: object = MlmNspObjective(),  # noqa: B008
        *,
        model: BertConfig = TINY,
        dropout: float = 0.1,
        optimizer: AdamW = AdamW(learning_rate=1e-3),  # noqa: B008
        steps: int = 100,
        grad_accum: int = 1,
        rules: dict | None = None,
        dtype: object = jnp.float32,
        segments: tuple[int, ...] = (),
        **axes: int,
    ) -> TrainProgram:
        rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        built, axes = registry.build(objective), AXES | axes
        return TrainProgram(
            model=model.model_copy(update=rates),
            objective=built,
            heads=built.heads,
            optimizer=optimizer,
            steps=steps,
            grad_accum=grad_accum,
            compute=ComputeOptions(platform="cpu", dtype=dtype, segments=segments),
            mesh=make_mesh(MeshConfig(**axes), jax.devices()[: int(np.prod(list(axes.values())))]),
            rules=merge_rules(rules or {}),
        )

    return make


def _layout(rng: np.random.Generator, rows: int, length: int, groups: int) -> dict[str, np.ndarray]:
    """Rows of `groups` examples, each 4 to length/groups tokens, back to back, then padding."""
    lengths = rng.integers(4, length // groups + 1, (rows, groups))
    starts = np.cumsum(lengths, axis=1) - lengths
    place = np.arange(length)[None, :]
    segment_ids = sum(
        (g + 1) * ((place >= starts[:, g, None]) & (place < (starts + lengths)[:, g, None])) for g in range(groups)
    )
    real = segment_ids > 0
    begin = np.where(real, np.take_along_axis(starts, np.maximum(segment_ids - 1, 0), axis=1), 0)
    return {
        "input_ids": np.where(real, rng.integers(1, VOCABULARY, (rows, length)), 0).astype(np.int32),
        "token_type_ids": (real & (rng.random((rows, length)) < 0.5)).astype(np.int32),
        "segment_ids": segment_ids.astype(np.int32),
        "positions": ((place - begin) * real).astype(np.int32),
        "cls_positions": starts.astype(np.int32),
        "lengths": lengths,
    }


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., dict[str, np.ndarray]]:
    """rows(kind, count): random batches as the loader makes them; kind is pairs or span, groups > 1 is packed."""

    def make(kind: str, count: int = 16, *, length: int = LENGTH, groups: int = 1, seed: int = 0) -> dict:
        rng = np.random.default_rng(seed)
        batch = _layout(rng, count, length, groups)
        lengths = batch.pop("lengths")
        if kind == "span":
            offsets = np.sort(rng.integers(0, lengths[..., None], (count, groups, 2)), axis=-1)
            first, last = np.moveaxis(batch["cls_positions"][..., None] + offsets, -1, 0)
            answers = {"start_positions": first, "end_positions": last}
            weights = (np.arange(count * groups).reshape(count, groups) % 7 != 6).astype(np.float32)
            return batch | {k: v.astype(np.int32) for k, v in answers.items()} | {"span_weights": weights}
        masked = rng.integers(0, lengths.sum(1)[:, None], (count, 5))
        return batch | {
            "masked_positions": masked.astype(np.int32),
            "masked_ids": rng.integers(1, VOCABULARY, (count, 5)).astype(np.int32),
            "masked_weights": (rng.random((count, 5)) < 0.8).astype(np.float32),
            "nsp_labels": rng.integers(0, 2, (count, groups)).astype(np.int32),
            "nsp_weights": np.ones((count, groups), np.float32),
        }

    return make


# ---- runs of the tiny project ----------------------------------------------------------------------------------------

PATCHED = {
    "initialize": (TrainProgram,),
    "jit_train_step": (episode_steps, step),
    "jit_eval_step": (evaluate_loss, step),
}
ORIGINAL = {name: getattr(places[-1], name) for name, places in PATCHED.items()}
kept: dict[str, Any] = {}


def compiled_once(name: str) -> Callable[..., Any]:
    """Runs of one process share what they trace; test_kill.py has a process for every run."""

    def cached(self: TrainProgram, *args: Any) -> Any:
        state = args[0] if args and isinstance(args[0], TrainState) else None
        about = (name, self.model, self.heads, self.optimizer, self.steps, self.grad_accum, self.tasks)
        about += (self.objective.weights, self.spike_rule)
        about += (self.peft, self.fixed_prefix)
        about += (self.objective.num_labels, self.objective.multi_label, self.episodes)
        key = repr((about, sorted(state.opt_state) if state else [jax.random.key_data(key) for key in args]))
        if key not in kept:
            kept[key] = ORIGINAL[name](self, *args)
        return kept[key]

    return cached


@contextmanager
def small_programs() -> Iterator[None]:
    """One device, for which small programs compile faster; meshes have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "all_devices", lambda: jax.devices()[:1])
        for name, places in PATCHED.items():
            for place in places:
                patch.setattr(place, name, compiled_once(name))
        yield


@pytest.fixture(scope="session")
def once() -> Callable[..., Any]:
    """`small_programs`, for runs of other projects."""
    return small_programs


@pytest.fixture
def one_device() -> Iterator[None]:
    with small_programs():
        yield


@pytest.fixture(scope="session")
def train(tiny_project, tmp_path_factory) -> Callable[..., Path]:
    """Trains tiny.yaml on one device under `train.root`, with overrides; -> the run folder."""
    root = tmp_path_factory.mktemp("runs")

    def run(name: str, *overrides: str) -> Path:
        config = load(tiny_project / "tiny.yaml", [f"run.root={root}", f"run.name={name}", *overrides])
        with small_programs():
            loop.train(config, tiny_project, build_evaluators)
        return config.run_dir

    run.root = root
    return run


@pytest.fixture(scope="session")
def whole(train) -> Path:
    """The run that nothing interrupted. Not to be changed."""
    return train("whole")


@pytest.fixture
def stop_at(monkeypatch) -> Callable[[str, int], None]:
    """Asks the loop to stop at a step of a stage, as SIGTERM would."""
    return lambda stage, step: monkeypatch.setattr(
        loop.StageRunner, "should_stop", lambda self, now: (self.name, now) == (stage, step)
    )
