"""Between two steps nothing moves between host and devices unless the code says so (`jax.transfer_guard`)."""

import jax
import numpy as np
import pytest

from bertjax.training.stage.runner import StageRunner


def test_the_guard_refuses_an_implicit_transfer():
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="[Dd]isallowed host-to-device"):
        jax.numpy.add(jax.device_put(np.ones(2, np.float32)), np.ones(2, np.float32))


@pytest.mark.parametrize("every", [1, 2], ids=["logged every step", "logged every second step"])
def test_steady_steps_move_nothing_implicitly(train, monkeypatch, every):
    real, guarded = StageRunner.run_step, list[int]()

    def run_step(self, state, step, *rest):
        starts = [episode.start + 1 for episode in self.plan.episodes]
        if step in starts:  # compiled here, and constants are put on the devices
            return real(self, state, step, *rest)
        guarded.append(step)
        with jax.transfer_guard("disallow"):
            return real(self, state, step, *rest)

    monkeypatch.setattr(StageRunner, "run_step", run_step)
    train(f"guarded-{every}", f"run.log_every={every}")
    assert len(guarded) > 5
