"""Matthews correlation of any number of classes, the score of GLUE's diagnostic set."""

import numpy as np


def matthews_correlation(labels: np.ndarray, guesses: np.ndarray) -> float:
    """R_K of Gorodkin (2004) for class ids [N] and [N], from -1 to 1; 0 where it is undefined, as in scikit-learn.

    For two classes it is the Matthews correlation coefficient.
    """
    count = int(max(labels.max(), guesses.max())) + 1
    of_label, of_guess = (np.bincount(ids, minlength=count).astype(float) for ids in (labels, guesses))
    total, hit = float(len(labels)), float((labels == guesses).sum())
    covariance = hit * total - of_label @ of_guess
    spread = (total**2 - of_label @ of_label) * (total**2 - of_guess @ of_guess)
    return covariance / float(np.sqrt(spread)) if spread > 0 else 0.0
