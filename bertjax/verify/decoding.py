"""Text generation of T5: length penalties of beam search, and the tokens that top-k and top-p keep."""

import numpy as np

from bertjax.verify.runner import Comparisons

PROBABILITIES = (0.4, 0.3, 0.2, 0.1)
# (top_k, top_p): the tokens that stay. 0.4 + 0.3 is the first sum of at least 0.5, and 0.4 / 0.7 alone reaches it.
KEPT_TOKENS: dict[tuple[int | None, float | None], list[int]] = {
    (None, None): [0, 1, 2, 3], (1, None): [0], (3, None): [0, 1, 2], (9, None): [0, 1, 2, 3], (None, 0.3): [0],
    (None, 0.5): [0, 1], (None, 0.8): [0, 1, 2], (None, 0.95): [0, 1, 2, 3], (2, 0.5): [0], (2, 0.6): [0, 1],
}  # fmt: skip


def length_penalties() -> Comparisons:
    from bertjax.models.decoding.beam import length_penalty

    for alpha, length, expected in ((0.6, 1, 1.0), (0.6, 7, 2**0.6), (0.6, 43, 8**0.6), (1.0, 13, 3.0), (0.0, 50, 1.0)):
        yield f"alpha {alpha}, length {length}", round(float(length_penalty(alpha, length)), 5), round(expected, 5)


def sampling_sets() -> Comparisons:
    from bertjax.models.decoding.sample import filter_logits

    logits = np.log(np.array([PROBABILITIES], np.float32))
    for (top_k, top_p), expected in KEPT_TOKENS.items():
        found = np.asarray(filter_logits(logits, top_k, top_p))[0]  # type: ignore[arg-type]
        yield f"top_k {top_k}, top_p {top_p}", np.flatnonzero(found > -1e29).tolist(), expected
