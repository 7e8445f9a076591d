"""Micro-batches of text-to-text rows: the gradients of the whole batch, however its loss is divided."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from t5_models import make_t5, rows

from bertjax.config.schema.training import TextToTextObjective
from bertjax.objectives import base, registry
from bertjax.training import freezing
from bertjax.training.program import TrainProgram
from bertjax.training.step import compute_gradients


def gradient(program: TrainProgram, objective: base.Objective, batch: dict) -> tuple[dict, dict, float]:
    program = replace(program, objective=objective)
    groups = freezing.param_groups(program.abstract_params())
    state = program.init_state(program.initialize(jax.random.key(1)), groups, jax.random.key(2))
    grads, terms, loss = jax.jit(lambda state, batch: compute_gradients(program, state, batch))(state, batch)
    return grads, terms["target"], float(loss)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "factor",
    ["average_per_sequence", *(pytest.param(f, marks=SLOW) for f in ("num_total_target_tokens", 100.0))],
)
def test_micro_batches_equal_one_batch(factor):
    """Rows of unlike lengths, so that means of the micro-batches' means would be others."""
    config = TextToTextObjective(loss_normalizing_factor=factor, label_smoothing=0.1, z_loss=0.01)
    objective, batch = registry.build(config), rows(8, seed=3)
    whole, cut = (gradient(make_t5(dropout=0.0, num_layers=1, grad_accum=n), objective, batch) for n in (1, 4))
    assert cut[2] == pytest.approx(whole[2], rel=1e-5)
    for name in ("loss", "correct", "weight", "train_loss"):
        np.testing.assert_allclose(getattr(cut[1], name), getattr(whole[1], name), rtol=1e-5, err_msg=name)
    for path, value in whole[0].items():
        np.testing.assert_allclose(
            cut[0][path], value, rtol=1e-3, atol=1e-6 * float(np.abs(value).max() + 1), err_msg=path
        )
