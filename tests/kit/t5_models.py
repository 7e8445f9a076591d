"""A T5 small enough to train in a test, and batches for it."""

from math import prod

import jax
import numpy as np

from bertjax.config.schema.model import T5Config
from bertjax.config.schema.run import MeshConfig
from bertjax.config.schema.training import AdamW, TextToTextObjective
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.peft_options import PeftOptions
from bertjax.objectives import registry
from bertjax.parallel.mesh import make_mesh
from bertjax.parallel.mesh_shape import merge_rules
from bertjax.training import freezing
from bertjax.training.program import TrainProgram
from bertjax.training.state import TrainState
from bertjax.training.step import jit_train_step

TINY_T5 = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
ADAMW = AdamW(kind="adamw", learning_rate=1e-2, warmup_steps=0)
LENGTHS = (16, 12)  # of inputs and targets


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Unpacked rows of an encoder-decoder: each input and target ends in EOS and is padded behind it."""
    rng = np.random.default_rng(seed)
    out: dict[str, np.ndarray] = {}
    for prefix, length in zip(("input", "target"), LENGTHS, strict=True):
        used = rng.integers(4, length + 1, (count, 1))
        place = np.arange(length)[None, :]
        real = place < used
        ids = np.where(place == used - 1, 1, rng.integers(3, TINY_T5.vocab_size, (count, length)))
        names = ("segment_ids", "positions") if prefix == "input" else ("target_segment_ids", "target_positions")
        out |= {f"{prefix}_ids": (ids * real).astype(np.int32), names[0]: real.astype(np.int32)}
        out[names[1]] = (place * real).astype(np.int32)
    return out | {"target_weights": (out["target_ids"] > 0).astype(np.float32)}


def make_t5(
    *,
    optimizer: object = ADAMW,
    steps: int = 4,
    dropout: float = 0.1,
    segments: tuple[int, ...] = (),
    adapter_size: int = 0,
    adapter_init: str = "reference",
    peft: PeftOptions | None = None,
    mesh: dict[str, int] | None = None,
    grad_accum: int = 1,
    **sizes: object,
) -> TrainProgram:
    """A program on as many devices as the axes of `mesh` need, by default one."""
    axes = {"data": 1, "fsdp": 1, "tensor": 1} | (mesh or {})
    objective = registry.build(TextToTextObjective())
    return TrainProgram(
        model=TINY_T5.model_copy(update={"dropout_rate": dropout, **sizes}),
        objective=objective,
        heads=objective.heads,
        optimizer=optimizer,
        steps=steps,
        grad_accum=grad_accum,
        compute=ComputeOptions(platform="cpu", segments=segments),
        mesh=make_mesh(MeshConfig(**axes), jax.devices()[: prod(axes.values())]),
        rules=merge_rules({}),
        peft=PeftOptions(adapter_size=adapter_size, adapter_init=adapter_init) if peft is None else peft,
    )


def train_t5(program: TrainProgram, steps: int) -> tuple[list[float], TrainState]:
    """-> (the loss of each step on 16 rows, the state after them), from fixed keys, with all groups training."""
    groups = freezing.param_groups(program.abstract_params())
    state = program.init_state(program.initialize(jax.random.key(1)), groups, jax.random.key(2))
    step, losses = jit_train_step(program, state), []
    for seed in range(steps):
        state, metrics = step(state, jax.device_put(rows(16, seed), program.batch_sharding()))
        losses.append(float(metrics["loss"]))
    return losses, state
