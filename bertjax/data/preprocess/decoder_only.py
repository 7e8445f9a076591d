"""Rows for a decoder without an encoder: the inputs and targets of each example in one sequence."""

from collections.abc import Mapping

import numpy as np

_BOTH = ("input_ids", "segment_ids", "positions", "target_ids", "target_segment_ids", "target_positions")
_KINDS = {
    "target_ids": np.int32, "target_segment_ids": np.int32, "target_positions": np.int32,
    "target_weights": np.float32, "prefix_mask": np.int32,
}  # fmt: skip


def to_decoder_only_rows(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows for an encoder [B, S] and a decoder [B, T] as rows for a decoder (seqio.PrefixLMFeatureConverter).

    Returns the targets' fields [B, L = S + T], weights 0 on the inputs, and prefix_mask int32 [B, L], the reference's
    decoder_causal_attention: 1 where the token that the decoder reads belongs to the inputs. The decoder input is
    shifted right by one, so the mask covers one position after the inputs, where the first target is predicted. Each
    example's inputs are followed by its targets, then the next example; padding at the end. Other fields stay.
    """
    segments, target_segments = np.asarray(rows["segment_ids"]), np.asarray(rows["target_segment_ids"])
    batch, length = len(segments), segments.shape[1] + target_segments.shape[1]
    inputs, targets = _example_lengths(segments, target_segments)
    begin = np.cumsum(inputs + targets, axis=1) - inputs - targets

    made = {name: np.zeros((batch, length), kind) for name, kind in _KINDS.items()}
    sides = (
        ("input_ids", segments, "positions", np.zeros_like(inputs)),
        ("target_ids", target_segments, "target_positions", inputs),
    )
    for ids, numbers, positions, before in sides:
        row, place = np.nonzero(numbers)
        segment = numbers[row, place]
        position = np.asarray(rows[positions])[row, place] + before[row, segment]
        at = (row, begin[row, segment] + position)
        made["target_ids"][at] = np.asarray(rows[ids])[row, place]
        made["target_segment_ids"][at] = segment
        made["target_positions"][at] = position
        if ids == "target_ids":
            made["target_weights"][at] = np.asarray(rows["target_weights"])[row, place]

    prefix = np.take_along_axis(inputs, made["target_segment_ids"], axis=1)
    made["prefix_mask"][(made["target_segment_ids"] > 0) & (made["target_positions"] <= prefix)] = 1
    return {name: value for name, value in rows.items() if name not in _BOTH and name not in made} | made


def _example_lengths(segments: np.ndarray, target_segments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many inputs and targets each example has: int64 [B, G + 1] each; column 0, the padding, is 0."""
    width = int(max(segments.max(initial=0), target_segments.max(initial=0))) + 1
    found = []
    for side in (segments, target_segments):
        cells = (np.arange(len(side))[:, None] * width + side)[side > 0]
        found.append(np.bincount(cells, minlength=len(side) * width).reshape(-1, width))
    return found[0], found[1]
