"""Scores of a search: against sklearn's nDCG, and by counting."""

import numpy as np
import pytest

from bertjax.evaluation.metrics import ranking
from bertjax.evaluation.metrics.ranking import ranking_scores


def unit(rng: np.random.Generator, rows: int) -> np.ndarray:
    x = rng.normal(size=(rows, 6))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("block", [1, 1 << 24])
def test_scores_are_those_of_a_sorted_list(block, monkeypatch):
    sklearn = pytest.importorskip("sklearn.metrics")
    monkeypatch.setattr(ranking, "MAX_BLOCK", block)
    rng = np.random.default_rng(0)
    queries, corpus = unit(rng, 30), unit(rng, 40)
    relevant = [sorted(set(rng.integers(0, 40, size=1 + n % 14).tolist())) for n in range(30)]
    truth = np.zeros((30, 40))
    for row, numbers in zip(truth, relevant, strict=True):
        row[numbers] = 1
    cosines = np.float64(queries) @ np.float64(corpus).T
    ranks = [1 + min(int((row > row[n]).sum()) for n in own) for row, own in zip(cosines, relevant, strict=True)]
    found = ranking_scores(queries, corpus, relevant)
    assert found["ndcg@10"] == pytest.approx(100 * sklearn.ndcg_score(truth, cosines, k=10))
    assert found["accuracy@1"] == pytest.approx(100 * np.mean([rank == 1 for rank in ranks]))
    assert found["accuracy@10"] == pytest.approx(100 * np.mean([rank <= 10 for rank in ranks]))
    assert found["mrr@10"] == pytest.approx(100 * np.mean([1 / rank if rank <= 10 else 0 for rank in ranks]))
    assert 0 < found["accuracy@1"] < found["mrr@10"] < found["accuracy@10"] < 100


def test_a_small_corpus_and_equal_cosines():
    vectors = np.eye(3, dtype=np.float32)
    assert ranking_scores(vectors, vectors, [[0], [1], [2]]) == dict.fromkeys(ranking.SCORES, 100.0)
    tied = ranking_scores(vectors[:1], np.float32([[0, 1, 0], [0, 0, 1]]), [[1]])  # the earlier text is first
    assert tied["accuracy@1"] == 0 and tied["mrr@10"] == 50 and tied["accuracy@10"] == 100
