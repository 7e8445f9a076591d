"""T5's learning rate, Adafactor and loss."""

import math
from typing import Any

import numpy as np

from bertjax.config.schema.training import Adafactor, TextToTextObjective
from bertjax.verify.runner import Comparisons


def learning_rates() -> Comparisons:
    from bertjax.training import optimizers

    schedule = optimizers.schedule(Adafactor(), 2**19)
    for step, expected in {0: 0.01, 9_999: 0.01, 10_000: 0.01, 2**19: 1 / math.sqrt(2**19), 1_000_000: 0.001}.items():
        yield f"step {step:,}", float(schedule(step)), expected  # type: ignore[arg-type]


def adafactor_steps() -> Comparisons:
    """test_apply_gradient of t5x/adafactor_test.py: the second step of ones on a 3 x 2 matrix of ones at rate 0.1."""
    from bertjax.training import optimizers

    for least, slots in ((1, ((0.9, 0.9574349), (0.1, 0.6169143))), (32, ((0.5, 0.787174),))):
        rule = optimizers.make_transform(Adafactor(min_dim_size_to_factor=least))
        params = {"x": np.ones((3, 2), np.float32)}
        first, *others = rule.init(params)  # type: ignore[misc]
        names = ("v_row", "v_col") if least == 1 else ("v",)
        given = {name: {"x": 0 * getattr(first, name)["x"] + slot[0]} for name, slot in zip(names, slots, strict=True)}
        first = first._replace(count=np.int32(1), **given)
        update, after = rule.update({"x": np.ones((3, 2), np.float32)}, (first, *others), params)  # type: ignore[arg-type]
        step = float(update["x"][0, 0])  # type: ignore[index,call-overload]
        yield f"parameter with {' and '.join(names)}", round(1 - 0.1 * step, 6), 0.9
        for name, (_, expected) in zip(names, slots, strict=True):
            found = float(getattr(after[0], name)["x"].ravel()[0])  # type: ignore[index]
            yield name, bool(math.isclose(found, expected, rel_tol=1e-6)), True  # the tolerance of that test


def loss_weights() -> Comparisons:
    """SpecialLossNormalizingFactorTest of t5x/losses_test.py: packed rows, and rows of one example."""
    from bertjax.objectives import registry

    packed: dict[str, Any] = {
        "target_weights": np.array([[0.5, 1.0, 0.25, 2.0, 1.5], [1.0, 2.0, 3.0, 4.0, 5.0]], np.float32),
        "target_segment_ids": np.array([[1, 1, 1, 2, 3], [1, 2, 2, 3, 0]]),
    }
    real = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    single: dict[str, Any] = {"target_weights": real.astype(np.float32), "target_segment_ids": real}
    for what, batch, factor, expected in (
        ("packed", packed, "average_per_sequence", 6.0),
        ("single", single, "average_per_sequence", 2.0),
        ("single", single, "num_real_target_tokens", 6.0),
        ("single", single, "num_total_target_tokens", 10.0),
        ("single", single, 233_472.0, 233_472.0),
    ):
        objective = registry.build(TextToTextObjective(loss_normalizing_factor=factor))  # type: ignore[arg-type]
        yield f"{what}, {factor}", float(objective.normalizers(batch)["target"]), expected


def losses() -> Comparisons:
    """compute_weighted_cross_entropy of t5x/losses.py for three logits, of which the second is the target."""
    from bertjax.objectives.losses import target_losses

    logits = (1.0, 3.0, -2.0)
    log_z = math.log(sum(math.exp(x) for x in logits))
    for z_loss, smoothing in ((0.0, 0.0), (1e-4, 0.0), (0.1, 0.1)):
        soft = (smoothing / 2, 1 - smoothing, smoothing / 2)
        entropy = -sum(p * math.log(p) for p in soft if p)
        expected = -sum(p * (x - log_z) for p, x in zip(soft, logits, strict=True)) - entropy + z_loss * log_z**2
        found, plain, right = target_losses(np.array([logits], np.float32), np.array([1]), z_loss, smoothing)
        name = f"z-loss {z_loss:g}, smoothing {smoothing:g}"
        yield f"{name}: loss", bool(abs(float(found[0]) - expected) < 1e-6), True
        yield f"{name}: cross-entropy", bool(abs(float(plain[0]) - (log_z - 3.0)) < 1e-6), True
        yield f"{name}: right", float(right[0]), 1.0
