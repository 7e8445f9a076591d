"""What the meter counts."""

import numpy as np

from bertjax.training.meter import real_tokens


def test_tokens_are_those_of_inputs_and_targets():
    inputs, targets = np.array([[1, 1, 2, 0], [1, 0, 0, 0]]), np.array([[1, 2, 0], [1, 1, 1]])
    bert = {"input_ids": inputs + 5, "segment_ids": inputs, "positions": inputs}
    assert real_tokens(bert) == 4
    assert real_tokens(bert | {"target_ids": targets, "target_segment_ids": targets, "target_weights": targets}) == 9
    assert real_tokens({"target_segment_ids": targets, "prefix_mask": targets, "task_ids": np.array([1, 1])}) == 5
