"""Programs put together by chance, over a mesh and on one device: the same losses, evaluation and parameters (slow)."""

import random
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from t5_models import make_t5
from t5_models import rows as t5_rows

from bertjax.config.schema.training import Adafactor, AdamW, MlmNspObjective, SpanQaObjective
from bertjax.models.peft_options import PeftOptions
from bertjax.parallel.mesh_shape import merge_rules
from bertjax.training import freezing
from bertjax.training.program import TrainProgram
from bertjax.training.step import jit_eval_step, jit_train_step

SIZES = [(s, d, f, t) for s in (1, 2) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) for t in (1, 2, 4)]
MESHES = [dict(zip(("dcn", "data", "fsdp", "tensor"), n, strict=True)) for n in SIZES if 1 < np.prod(n) <= 8]
RULES: list[dict[str, Any]] = [
    {}, {"sequence": "tensor"}, {"vocab": None}, {"embed": None}, {"sequence": "tensor", "vocab": None},
    {"heads": None}, {"mlp": None, "sequence": "tensor"}, {"embed": ["data", "fsdp"]}, {"batch": ["data", "fsdp"]},
]  # fmt: skip
PEFT = (
    PeftOptions(adapter_size=8),
    PeftOptions(lora_rank=2, lora_dropout=0.1, lora_targets=("query", "value", "attention_output", "mlp_output")),
)
STEPS = 2


def draw(seed: int, make_program: Any, make_rows: Any) -> tuple[TrainProgram, TrainProgram, list[dict], int]:
    """(the program on one device, the same over a mesh, its batches, how many groups from the bottom are frozen).

    Also with a single row for each device and micro-batch, and with heads that the mesh does not divide.
    """
    choose = random.Random(seed).choice
    mesh, rules, heads = choose(MESHES), choose(RULES), choose([4, 4, 3])
    shared = {"grad_accum": choose([1, 2]), "segments": choose([(), (2,), (1, 1)])}
    count = mesh["dcn"] * mesh["data"] * mesh["fsdp"] * shared["grad_accum"] * choose([1, 1, 2, 3])
    if choose([True, False]):
        objective, kind, groups = choose(
            [(MlmNspObjective(), "pairs", 1), (SpanQaObjective(), "span", 1), (SpanQaObjective(), "span", 2)]
        )
        sizes = {"num_attention_heads": heads, "hidden_size": 8 * heads}
        model = make_program(objective).model.model_copy(update=sizes)
        pair = [make_program(objective, model=model, **shared, **axes) for axes in ({}, mesh)]
        batches = [make_rows(kind, count, groups=groups, seed=k) for k in range(STEPS)]
    else:
        optimizer = choose([Adafactor(min_dim_size_to_factor=16), AdamW(kind="adamw", warmup_steps=0)])
        untied = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
        shared |= choose([{}, untied]) | {"optimizer": optimizer, "steps": 100, "num_heads": heads}
        pair = [make_t5(mesh=axes, **shared) for axes in ({}, mesh)]
        batches = [t5_rows(count, k) for k in range(STEPS)]
    remat, peft = choose(["none", "none", "full", "dots"]), choose([PeftOptions(), PeftOptions(), *PEFT])
    one, many = (
        replace(
            p,
            compute=replace(p.compute, remat=remat),
            peft=peft,
            rules=merge_rules(r),
        )
        for p, r in zip(pair, ({}, rules), strict=True)
    )
    return one, many, batches, choose([0, 0, 1, 3, 4])


def run(program: TrainProgram, batches: list[dict], below: int) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    groups = freezing.param_groups(program.abstract_params())[below:]
    state = program.init_state(program.initialize(jax.random.key(1)), groups, jax.random.key(2))
    step, evaluate, numbers = jit_train_step(program, state), jit_eval_step(program), []
    for batch in batches:
        batch = jax.device_put(batch, program.batch_sharding())
        terms = evaluate({**state.params, **state.frozen}, batch)
        state, metrics = step(state, batch)
        numbers.append(jax.device_get({f"eval_{name}": term.loss for name, term in terms.items()} | metrics))
    return numbers, jax.device_get({**state.params, **state.frozen})


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_a_mesh_changes_nothing_of_any_program(make_program, make_rows, seed):
    one, many, batches, below = draw(seed, make_program, make_rows)
    (expected, params), (found, others) = run(one, batches, below), run(many, batches, below)
    said = f"{many.mesh.shape}, {many.rules}, {many.compute}, by hand {many.manual_axes}"
    for numbers, wanted in zip(found, expected, strict=True):
        assert numbers.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(numbers[name], value, rtol=1e-4, atol=1e-6, err_msg=f"{name}: {said}")
    for path, value in params.items():
        np.testing.assert_allclose(others[path], value, rtol=0, atol=3e-4, err_msg=f"{path}: {said}")
    jax.clear_caches()
