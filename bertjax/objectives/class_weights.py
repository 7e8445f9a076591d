"""Weights of classes in the training loss: by name, or balanced by the labels of the training data."""

from collections.abc import Iterable, Sequence

import numpy as np

from bertjax.config.schema.training import ClassificationObjective
from bertjax.data.sources.class_names import find_class_id, format_names
from bertjax.data.store.reader import Store
from bertjax.errors import UserError

ROWS = 1 << 14  # read at once to count labels


def weigh_classes(
    config: ClassificationObjective, names: Sequence[str] | None, stores: Iterable[Store]
) -> tuple[ClassificationObjective, str]:
    """(the section with its `class_weights` as a list by id, a line that reports them).

    names: of the classes by id. `balanced`: N / (C * N_c) for the N_c of N examples in class c, as
    `compute_class_weight` of scikit-learn; with several labels for one text the examples without a label divided by
    those with it. A class without examples has 1. Raises UserError for an unknown name.
    """
    given = config.class_weights
    shown = list(names) if names else [str(number) for number in range(config.num_labels)]
    if given == "balanced":
        examples, counts = count_labels(stores, config.num_labels, config.multi_label)
        part = (examples - counts) if config.multi_label else np.full(len(counts), examples / len(counts))
        weights = np.where((counts > 0) & (part > 0), part / np.maximum(counts, 1), 1.0)
    elif isinstance(given, dict):
        weights = np.ones(config.num_labels)
        for name, weight in given.items():
            number = find_class_id(name, shown)
            if number is None or number < 0:
                raise UserError(f"'{name[:60]}' is not one of the classes: {format_names(shown)}")
            weights[number] = weight
    else:
        weights = np.asarray(given, float)
    parts = [f"{name} {weight:.3g}" for name, weight in zip(shown, weights, strict=True)]
    made = config.model_copy(update={"class_weights": [float(weight) for weight in weights]})
    return made, f"class weights: {format_names(parts, 200)}"


def count_labels(stores: Iterable[Store], classes: int, multi_label: bool) -> tuple[int, np.ndarray]:
    """-> (labelled examples, examples of each class, int [C]) in prepared data."""
    examples, counts = 0, np.zeros(classes, np.int64)
    for store in stores:
        for start in range(0, len(store), ROWS):
            rows = store.rows(np.arange(start, min(start + ROWS, len(store))))
            labels = rows["labels"][rows["label_weights"] > 0]
            examples += len(labels)
            counts += labels.sum(0, dtype=np.int64) if multi_label else np.bincount(labels, minlength=classes)
    return examples, counts
