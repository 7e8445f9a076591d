"""Vectors drawn in the plane: principal components and t-SNE."""

from typing import NamedTuple

import numpy as np

from bertjax.errors import UserError

MOST_PERPLEXITY = 30.0  # scikit-learn's default; fewer points need less


class Pca(NamedTuple):
    """`points` [N, k] and the share of the variance along each of the k axes, `explained` [k]."""

    points: np.ndarray
    explained: np.ndarray


def pca(vectors: np.ndarray, k: int) -> Pca:
    """Project centered vectors [N, D] on their `k` directions of largest variance, float64.

    The sign of an axis is that of its largest component, as in scikit-learn. Axes beyond min(N, D) are zero.
    """
    x = np.asarray(vectors, np.float64)
    x = x - x.mean(axis=0)
    _, scales, axes = np.linalg.svd(x, full_matrices=False)
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    axes = axes * np.where(signs == 0, 1, signs)[:, None]
    variances = scales**2
    total = variances.sum()
    points, explained = np.zeros((len(x), k)), np.zeros(k)
    found = min(k, len(scales))
    points[:, :found] = x @ axes[:found].T
    explained[:found] = variances[:found] / total if total > 0 else 0.0
    return Pca(points, explained)


def tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Place vectors [N, D] by t-SNE (van der Maaten and Hinton 2008) of cosine distances -> [N, 2].

    At least 4 vectors; perplexity 30, or a third of the points where they are few. Raises UserError without
    scikit-learn.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UserError("t-SNE needs scikit-learn: pip install 'bertjax[eval]', or --picture pca") from None
    perplexity = min(MOST_PERPLEXITY, (len(vectors) - 1) / 3)
    model = TSNE(2, perplexity=perplexity, metric="cosine", init="random", random_state=seed % 2**32, n_jobs=1)
    return np.asarray(model.fit_transform(np.asarray(vectors, np.float32)), np.float64)
