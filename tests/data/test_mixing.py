"""Mixing rates against the figures of T5's mixtures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.config.loading.load import build
from bertjax.config.schema.data import Mixture
from bertjax.data.pipeline.mixing import rates, task_seed, to_row_rates
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


def rate_of(mixture: str, mixtures: dict[str, dict], **counts: int) -> dict[str, float]:
    rule = lambda of: "explicit" if isinstance(of, dict) else "equal"  # noqa: E731
    made = {name: Mixture(mixture=of, rate=rule(of)) for name, of in mixtures.items()}
    return rates(counts, made[mixture], made)


def test_mixtures_of_mixtures_are_those_of_seqio():
    """dataset_providers_test.py test_mixture_of_mixtures and _dupe: rates [.5, .5, 1] and [1.5, .5, 1]."""
    ones = {"a": 9, "b": 1, "c": 4}
    supermix = {"another_mix": {"a": 1, "b": 1}, "supermix": {"another_mix": 1, "c": 1}}
    assert rate_of("supermix", supermix, **ones) == {"a": 0.25, "b": 0.25, "c": 0.5}
    dupe = {"yet_another_mix": {"a": 1, "b": 1}, "supermix_with_dupe": {"yet_another_mix": 1, "a": 1, "c": 1}}
    found = rate_of("supermix_with_dupe", dupe, **ones)
    assert found == pytest.approx({"a": 1.5 / 3, "b": 0.5 / 3, "c": 1 / 3})
    equal = {"inner": ["a", "b"], "outer": ["inner", "c"]}  # a default rate of 1.0 is a number too
    assert rate_of("outer", equal, **ones) == {"a": 0.25, "b": 0.25, "c": 0.5}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 10**6), min_size=3, max_size=3), st.floats(0.01, 100), st.floats(0.01, 100))
def test_a_mixture_inside_keeps_its_proportions(counts: list[int], inner: float, alone: float):
    named = {"inner": Mixture(mixture=["a", "b"], limit=1000, temperature=2.0)}
    outer = Mixture(mixture={"inner": inner, "c": alone}, rate="explicit")
    rows = dict(zip("abc", counts, strict=True))
    found, own = rates(rows, outer, named), rates(rows, named["inner"])
    assert sum(found.values()) == pytest.approx(1)
    assert found["c"] == pytest.approx(alone / (alone + inner))
    assert found["a"] / found["b"] == pytest.approx(own["a"] / own["b"])


@pytest.mark.parametrize(
    ("mixtures", "says"),
    [
        (
            {"inner": {"mixture": ["a"]}, "outer": {"mixture": ["inner", "b"]}},
            "'inner' is inside a mixture",
        ),
        ({"outer": {"mixture": ["inner", "b"], "rate": "equal"}}, "uses task 'inner', which is not under"),
        ({"outer": {"mixture": ["outer", "b"], "rate": "equal"}}, "its mixtures contain each other"),
        ({"outer": {"mixture": ["a", "b"], "rate": "equal", "temperature": 2}}, "limit and temperature change"),
        ({"outer": {"mixture": ["a", "b"]}, "a": {"mixture": ["b"]}}, "'a' is both a task and a mixture"),
    ],
)
def test_mixtures_that_cannot_be(mixtures, says):
    task = {"source": {"kind": "stdlib_docs"}}
    stage = {"name": "s", "data": "outer", "steps": 1}
    with pytest.raises(UserError, match=says):
        build({"tasks": {"a": task, "b": task}, "mixtures": mixtures, "stages": [stage]})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 1), st.integers(1, 500), st.integers(1, 30)), min_size=1, max_size=5))
def test_packed_rows_hold_the_shares_of_the_examples(tasks: list[tuple[float, int, int]]):
    """Rows times examples to a row, task by task, are in the proportions asked for."""
    names = [str(n) for n in range(len(tasks))]
    shares = {n: share / sum(t[0] for t in tasks) for n, (share, _, _) in zip(names, tasks, strict=True)}
    rows = {n: count for n, (_, count, _) in zip(names, tasks, strict=True)}
    examples = {n: count * packed for n, (_, count, packed) in zip(names, tasks, strict=True)}
    found = to_row_rates(shares, examples, rows)
    drawn = {n: found[n] * examples[n] / rows[n] for n in names}
    assert sum(found.values()) == pytest.approx(1)
    for name in names:
        assert drawn[name] / sum(drawn.values()) == pytest.approx(shares[name])


def test_an_empty_task_is_named():
    with pytest.raises(UserError, match="task 'rte' has no examples"):
        rates({"cola": 1, "rte": 0}, Mixture(mixture=["cola", "rte"]))


def test_seeds_differ_by_stage_and_task_and_fit_the_order():
    seeds = {task_seed(seed, stage, task) for seed in range(3) for stage in "ab" for task in "cd"}
    assert len(seeds) == 12 and all(0 <= seed < 2**32 for seed in seeds)
    assert task_seed(0, "a", "bc") != task_seed(0, "ab", "c")


def test_a_low_temperature_needs_no_number_beyond_a_float():
    """393,000^100 is above the largest float; the shares r_m^(1/T) (arXiv 1910.10683 section 3.5.2) are not."""
    found = rates({"a": 392_702, "b": 390_000}, Mixture(mixture=["a", "b"], temperature=0.01))
    ratio = (390_000 / 392_702) ** 100
    assert found["b"] / found["a"] == pytest.approx(ratio, rel=1e-9)
    for temperature in (0.01, 1e-300):
        with pytest.raises(UserError, match="task 'rte' has a share of .* raise the mixture's temperature"):
            rates(GLUE, Mixture(mixture=["mnli", "rte"], temperature=temperature))
