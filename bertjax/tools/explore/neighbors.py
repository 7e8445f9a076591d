"""Nearest words by the cosine of their vectors."""

from collections.abc import Sequence

import numpy as np


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Vectors [N, D] scaled to length 1, float32; a vector of zeros stays so."""
    rows = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def nearest(
    vectors: np.ndarray, pieces: Sequence[str], words: Sequence[str], n: int
) -> dict[str, list[tuple[str, float]]]:
    """The `n` pieces with the largest cosine to each of `words`, best first, without the word itself.

    `vectors` [V, D] has a row for each of `pieces`, which are different. Words that are no pieces are left out of the
    result; equal cosines are in the order of the pieces. The cosines are those of gensim's KeyedVectors.most_similar.
    """
    index = {piece: number for number, piece in enumerate(pieces)}
    known = [word for word in dict.fromkeys(words) if word in index]
    units = unit_rows(vectors)
    own = np.array([index[word] for word in known], int)
    cosines = units[own] @ units.T
    cosines[np.arange(len(known)), own] = -np.inf
    return {word: _best(line, pieces, n) for word, line in zip(known, cosines, strict=True)}


def _best(cosines: np.ndarray, pieces: Sequence[str], n: int) -> list[tuple[str, float]]:
    n = min(n, len(pieces) - 1)
    order = np.argsort(-cosines, kind="stable")[:n]
    return [(pieces[i], float(cosines[i])) for i in order.tolist()]
