"""Inputs and targets side by side, against the examples of seqio and the examples' own order."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bertjax.data.preprocess.decoder_only import to_decoder_only_rows

Example = tuple[list[int], list[int]]


def rows_of(packed: list[list[Example]], inputs: int, targets: int) -> dict[str, np.ndarray]:
    """One row for each list of (inputs, targets)."""
    rows: dict[str, np.ndarray] = {}
    for side, (prefix, width) in enumerate((("", inputs), ("target_", targets))):
        ids, segments, positions = np.zeros((3, len(packed), width), np.int32)
        for row, examples in enumerate(packed):
            at = 0
            for number, example in enumerate(examples, 1):
                size = len(example[side])
                ids[row, at : at + size] = example[side]
                segments[row, at : at + size] = number
                positions[row, at : at + size] = range(size)
                at += size
        rows |= {f"{prefix or 'input_'}ids": ids, f"{prefix}segment_ids": segments, f"{prefix}positions": positions}
    return rows | {"target_weights": (rows["target_segment_ids"] > 0).astype(np.float32)}


def test_the_packed_example_of_seqio():
    """feature_converters_test.py, PrefixLMFeatureConverter: test_prefix_lm_packed."""
    fused = to_decoder_only_rows(rows_of([[([7, 8, 5, 1], [3, 9, 1]), ([8, 4, 9, 3, 1], [4, 1])]], 10, 5))
    expected = {
        "target_ids": [7, 8, 5, 1, 3, 9, 1, 8, 4, 9, 3, 1, 4, 1, 0],
        "target_weights": [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0],
        "target_positions": [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0],
        "target_segment_ids": [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0],
        "prefix_mask": [1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0],
    }
    assert {name: value[0].tolist() for name, value in fused.items()} == expected


def test_the_unpacked_example_of_seqio():
    """The same file: test_prefix_lm_long_inputs_feature_length."""
    fused = to_decoder_only_rows(rows_of([[([9, 4, 6, 1], [3, 9, 1])]], 10, 4))
    assert fused["target_ids"][0].tolist() == [9, 4, 6, 1, 3, 9, 1, 0, 0, 0, 0, 0, 0, 0]
    assert fused["target_weights"][0].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert fused["prefix_mask"][0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]


ids = st.lists(st.integers(2, 99), min_size=1, max_size=5)


@given(st.lists(st.lists(st.tuples(ids, ids), max_size=4), min_size=1, max_size=4))
def test_examples_follow_each_other(packed: list[list[Example]]):
    rows = rows_of(packed, 20, 20) | {"task_ids": np.arange(len(packed))}
    fused = to_decoder_only_rows(rows)
    assert fused["task_ids"].tolist() == list(range(len(packed)))
    for row, examples in enumerate(packed):
        text = [token for inputs, targets in examples for token in inputs + targets]
        weights = [w for inputs, targets in examples for w in [0] * len(inputs) + [1] * len(targets)]
        visible = [m for inputs, targets in examples for m in [1] * (len(inputs) + 1) + [0] * (len(targets) - 1)]
        empty = [0] * (40 - len(text))
        assert fused["target_ids"][row].tolist() == text + empty
        assert fused["target_weights"][row].tolist() == weights + empty
        assert fused["prefix_mask"][row].tolist() == visible + empty
