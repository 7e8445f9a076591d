"""The numpy types of prepared rows, unpacked and packed."""

from typing import Any

import numpy as np

SEGMENTS = ("segment_ids", "target_segment_ids")  # one for each sequence of a row


def row_dtype(sequence_length: int, **per_example: Any) -> np.dtype:
    """input_ids, token_type_ids, segment_ids, positions int32 [S], then `per_example` fields [1] of the types given."""
    names = ("input_ids", "token_type_ids", "segment_ids", "positions")
    tokens = [(name, "<i4", (sequence_length,)) for name in names]
    return np.dtype(tokens + [(name, np.dtype(kind).str, (1,)) for name, kind in per_example.items()])


def packed_dtype(dtype: np.dtype, max_segments: int) -> np.dtype:
    """`dtype` with room for `max_segments` examples: fields [1] become [G]."""
    fields = field_list(dtype)
    return np.dtype([(name, kind, (max_segments,) if shape == (1,) else shape) for name, kind, shape in fields])


def field_list(dtype: np.dtype) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(name, dtype[name].base.str, dtype[name].shape) for name in dtype.names or ()]


def row_lengths(dtype: np.dtype) -> list[int]:
    """How many tokens a row holds: of its one sequence, or of its inputs and of its targets."""
    return [dtype[name].shape[0] for name in ("tokens", *SEGMENTS) if name in (dtype.names or ())]
