"""Mixing rates against the figures of T5's mixtures, and the order they give."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.config.data_schema import Mixture
from bertjax.data.mixing import RATE_STEPS, order, rates, stream_seed
from bertjax.errors import UserError

# t5/data/glue_utils.py: examples of each GLUE task.
GLUE = {
    "cola": 8551, "sst2": 67349, "mrpc": 3668, "qqp": 363849, "stsb": 5749, "mnli": 392702, "qnli": 104743, "rte": 2490,
}  # fmt: skip
# The shares seqio.mixing_rate_num_examples gives for them.
GOLDEN = {
    (None, 1.0): [0.00901, 0.07096, 0.00386, 0.38336, 0.00606, 0.41376, 0.11036, 0.00262],
    (2**16, 1.0): [0.03026, 0.2319, 0.01298, 0.2319, 0.02034, 0.2319, 0.2319, 0.00881],
    (None, 2.0): [0.04421, 0.12407, 0.02895, 0.28837, 0.03625, 0.29958, 0.15472, 0.02386],
}


@pytest.mark.parametrize(("limit", "temperature"), GOLDEN)
def test_glue_proportions_are_those_of_seqio(limit: int | None, temperature: float):
    mixture = Mixture(mixture=list(GLUE), limit=limit, temperature=temperature)
    found = rates(GLUE, mixture)
    assert list(found) == list(GLUE)
    np.testing.assert_allclose(list(found.values()), GOLDEN[limit, temperature], atol=5.1e-6)


def test_the_limit_comes_before_the_temperature():
    found = rates({"a": 100, "b": 10_000}, Mixture(mixture=["a", "b"], limit=400, temperature=2.0))
    assert found["b"] / found["a"] == pytest.approx(2.0)  # (400 / 100) ** (1 / 2); the other order would give 10


def test_equal_and_explicit_rates():
    assert rates(GLUE, Mixture(mixture=list(GLUE), rate="equal")) == dict.fromkeys(GLUE, 1 / 8)
    found = rates(GLUE, Mixture(mixture={"cola": 3.0, "rte": 1.0}, rate="explicit"))
    assert found == {"cola": 0.75, "rte": 0.25}


def test_an_empty_task_is_named():
    with pytest.raises(UserError, match="task 'rte' has no examples"):
        rates({"cola": 1, "rte": 0}, Mixture(mixture=["cola", "rte"]))


def test_seeds_differ_by_stage_and_task_and_fit_grain():
    seeds = {stream_seed(seed, stage, task) for seed in range(3) for stage in "ab" for task in "cd"}
    assert len(seeds) == 12 and all(0 <= seed < 2**32 for seed in seeds)
    assert stream_seed(0, "a", "bc") != stream_seed(0, "ab", "c")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_every_epoch_of_every_task_sees_each_row_once(counts: list[int], seed: int):
    stream = order(counts, [1.0 / len(counts)] * len(counts), [seed] * len(counts))
    seen: dict[tuple[int, int], list[int]] = {}
    for position in range(3 * max(counts) * len(counts)):
        task, epoch, index = stream[position]
        seen.setdefault((task, epoch), []).append(index)
    for (task, epoch), indices in seen.items():
        assert len(set(indices)) == len(indices)
        if (task, epoch + 1) in seen:  # a finished epoch
            assert sorted(indices) == list(range(counts[task]))


def test_each_epoch_has_an_order_of_its_own():
    stream = order([200], [1.0], [7])
    epochs = [[stream[200 * epoch + at].index for at in range(200)] for epoch in range(4)]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert all(stream[200 * epoch + at].epoch == epoch for epoch in range(4) for at in (0, 199))


def test_the_stream_keeps_the_proportions_everywhere():
    shares = [GOLDEN[(None, 2.0)][0], GOLDEN[(None, 2.0)][3], GOLDEN[(None, 2.0)][7]]
    shares = [share / sum(shares) for share in shares]
    stream = order([1000, 500, 20], shares, [1, 2, 3])
    for first in (0, 10**6, 10**12):  # far positions cost nothing
        counts = Counter(stream[position].task for position in range(first, first + 4000))
        for task, share in enumerate(shares):
            # one row of stride, and half a step of rounding relative to the rarest task
            assert abs(counts[task] - 4000 * share) <= 2 + 4000 * share / (2 * RATE_STEPS)
    assert stream[10**12] == order([1000, 500, 20], shares, [1, 2, 3])[10**12]
