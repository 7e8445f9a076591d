"""Scores of a search by cosine: is the right text among the first ones, and how far up."""

from collections.abc import Sequence

import numpy as np

DEPTH = 10  # results of each query that are looked at
SCORES = ("accuracy@1", "accuracy@10", "mrr@10", "ndcg@10")
MAX_BLOCK = 1 << 24  # cosines computed at once


def ranking_scores(queries: np.ndarray, corpus: np.ndarray, relevant: Sequence[Sequence[int]]) -> dict[str, float]:
    """Vectors of length 1, queries [Q, D] and corpus [N, D]; `relevant`: for each query numbers of corpus texts.

    In percent, as sentence-transformers' InformationRetrievalEvaluator computes them. accuracy@k: queries with a
    relevant text among the first k. mrr@10: mean of 1 / rank of the first relevant text, 0 beyond the tenth. ndcg@10:
    sum of 1 / log2(rank + 1) over relevant texts, divided by that of the best order. Of equal cosines the earlier text
    of the corpus is first.
    """
    gains = 1 / np.log2(np.arange(2, DEPTH + 2))
    sums = np.zeros(len(SCORES))
    for number, found in enumerate(_nearest(queries, corpus)):
        hits = np.isin(found, relevant[number])
        first = int(hits.argmax()) if hits.any() else None
        ideal = gains[: min(DEPTH, len(set(relevant[number])))].sum()
        reciprocal = 0.0 if first is None else 1 / (first + 1)
        sums += [first == 0, first is not None, reciprocal, gains[: len(hits)][hits].sum() / ideal]
    return dict(zip(SCORES, (100 * sums / max(len(queries), 1)).tolist(), strict=True))


def _nearest(queries: np.ndarray, corpus: np.ndarray) -> list[np.ndarray]:
    """Numbers of the DEPTH corpus texts with the highest cosine for each query, best first."""
    found: list[np.ndarray] = []
    rows = max(1, MAX_BLOCK // max(len(corpus), 1))
    for start in range(0, len(queries), rows):
        cosines = queries[start : start + rows] @ corpus.T
        found += [*np.argsort(-cosines, axis=1, kind="stable")[:, :DEPTH]]
    return found
