"""Spans of one text: what the table of `bertjax verify` does not say."""

from collections import Counter
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertjax.data.preprocess.denoising import reference

SENTINELS = np.arange(999, 899, -1)
densities = st.floats(0.05, 0.95)
means = st.floats(1.0, 12.0)


def runs(mask: np.ndarray) -> int:
    return int(np.count_nonzero(np.diff(np.concatenate([[False], mask]).astype(int)) == 1))


def restored(inputs: list[int], targets: list[int], sentinels: list[int]) -> list[int]:
    """The text, from inputs and targets without their ends, where the text begins with what is not hidden."""
    hidden: dict[int, list[int]] = {}
    for token in targets:
        if token in sentinels:
            hidden[token] = []
        else:
            hidden[next(reversed(hidden))].append(token)
    return [t for token in inputs for t in (hidden[token] if token in sentinels else [token])]


@given(st.integers(2, 300), densities, means, st.integers(0, 2**32))
def test_counts_are_kept_and_text_comes_first(length: int, density: float, mean: float, seed: int):
    mask = reference.random_spans_noise_mask(length, density, mean, np.random.default_rng(seed))
    noise, count = reference.noise_counts(length, density, mean)
    assert mask.sum() == noise and runs(mask) == count
    assert not mask[0] and mask[-1]


@given(st.integers(2, 150), st.floats(0.05, 0.4), means, st.integers(0, 2**32), st.booleans())
def test_inputs_and_targets_restore_the_text(length: int, density: float, mean: float, seed: int, roll: bool):
    tokens = np.arange(3, 3 + length)
    mask = reference.random_spans_noise_mask(length, density, mean, np.random.default_rng(seed), roll)
    if mask[0]:  # a turned mask: targets begin with noise
        mask = ~mask
    inputs = reference.noise_span_to_unique_sentinel(tokens, mask, SENTINELS).tolist()
    targets = reference.nonnoise_span_to_unique_sentinel(tokens, mask, SENTINELS).tolist()
    assert [t for t in inputs if t > 500] == SENTINELS[: runs(mask)].tolist()
    assert [t for t in targets if t > 500] == SENTINELS[: runs(~mask)].tolist()
    if mask[-1]:
        assert restored(inputs, targets, SENTINELS.tolist()) == tokens.tolist()


def test_every_mask_is_as_likely():
    """Nine tokens, three of them noise in two spans: C(2, 1) * C(5, 1) masks."""
    rng = np.random.default_rng(3)
    counts = Counter(reference.random_spans_noise_mask(9, 0.33, 1.5, rng).tobytes() for _ in range(4000))
    assert len(counts) == comb(2, 1) * comb(5, 1)
    assert sum((count - 400) ** 2 / 400 for count in counts.values()) < 27.9  # chi-square, 9 degrees, p = 0.001


def test_turning_evens_out_the_edges():
    rng = np.random.default_rng(4)
    share = np.mean(
        [reference.random_spans_noise_mask(20, 0.15, 3.0, rng, random_roll=True) for _ in range(4000)], axis=0
    )
    assert np.abs(share - 3 / 20).max() < 5 * (0.15 * 0.85 / 4000) ** 0.5


def test_more_spans_than_sentinels_are_refused():
    mask = np.arange(10) % 2 == 1
    with pytest.raises(ValueError, match="5 spans of noise need as many sentinels; there are 4"):
        reference.noise_span_to_unique_sentinel(np.arange(10), mask, SENTINELS[:4])


@given(st.integers(2, 700), st.floats(0.05, 0.5), st.floats(1.0, 12.0))
def test_lengths_are_the_largest_that_fit(length: int, density: float, mean: float):
    """Against a search from nothing: random_spans_helper starts at the length itself."""

    def inputs(tokens: int) -> int:
        noise = round(tokens * density)
        return tokens - noise + round(noise / mean) + 1

    found = reference.span_lengths(length, density, mean)
    most = next(tokens for tokens in range(2 * length + 2, 0, -1) if inputs(tokens) <= length)
    assert found.tokens == most or (density == 0.5 and found.tokens == most - 1)
    if found.tokens == most:  # else the reference takes one from the targets as well, whatever the noise comes to
        assert found.targets == found.noise + found.spans + 1


def test_the_prefix_has_a_rule_up_to_half():
    with pytest.raises(ValueError, match="at most 0.5"):
        reference.prefix_bounds(10, 0.6)
    shortest, longest = reference.prefix_bounds(10, 0.5)  # preprocessors_test.py of t5: test_random_prefix_noise_mask
    assert shortest >= 1 and longest <= 9
