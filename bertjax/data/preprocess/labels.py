"""A classification task's labels and their ids: by the names of the classifier, else by the task's `labels`, the names
of the data set (ClassLabel), the numbers themselves, or sorted order."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bertjax.data.preprocess.label_survey import LabelKey, LabelSurvey, label_key
from bertjax.data.sources import class_names
from bertjax.data.sources.class_names import UNLABELED, ClassSpec, find_class_id, format_names
from bertjax.errors import UserError

_ORDERS = {"labels": "as preprocess.labels says", "source": "as the data set has them", "data": "in sorted order"}


class LabelEncoder(NamedTuple):
    """Maps the labels of a task to numbers; sent to worker processes."""

    ids: Mapping[LabelKey, int] | None  # of every label in the data; None for regression, where a label is its number
    names: tuple[str, ...] | None  # by id
    decided_by: str | None  # start (`ClassSpec.names`), labels (of the section), source (ClassLabel) or data
    given: tuple[str, ...] | None  # the source's own order of names
    unlabeled: int  # rows without a label
    several: int | None = None  # the number of classes where a text may have several of them

    def encode(self, label: Any) -> tuple[Any, float]:
        """(id or number, weight) of a label; of a list of labels ([C] of 1 for those in it and 0 else, weight)."""
        if self.several is not None:
            return self._encode_list(label)
        key = label_key(label)
        found = self.ids.get(key, UNLABELED) if self.ids is not None else None
        if key is None or found == UNLABELED:
            return 0.0, 0.0
        return (float(key) if found is None else found), 1.0

    def _encode_list(self, labels: Sequence[Any] | None) -> tuple[np.ndarray, float]:
        row = np.zeros(self.several or 0, np.uint8)
        row[[(self.ids or {})[label_key(label)] for label in labels or ()]] = 1
        return row, float(labels is not None)


def build_label_encoder(found: LabelSurvey, classes: ClassSpec) -> LabelEncoder:
    """The table of a task's labels. Raises UserError, naming a record, for labels that do not fit the classifier."""
    if found.texts and (set(found.numbers) - {UNLABELED} or found.fraction) and not found.has_bools:
        raise UserError(f"'{found.name}' is a text in some records and a number in others; write all in one form")
    if not found.several and (classes.count == 1 or (classes.count is None and found.fraction)):
        labels = _regression(found)
    elif found.fraction:
        raise UserError(
            f"objective.num_labels is {classes.count} but {found.fraction[1]} has label {found.fraction[0]:g}, a "
            "fraction; set objective.num_labels=1 for regression"
        )
    else:
        named = _from_classifier_names(found, classes) or _from_data_names(found, classes)
        labels = named or _from_numbers(found, classes)
        if found.several:
            if bad := next((key for key, number in (labels.ids or {}).items() if number == UNLABELED and key), None):
                raise UserError(
                    f"{found.where(bad)}: '{found.name}' holds {bad}, which is no label; correct the record"
                )
            most = max((number for number in (labels.ids or {}).values()), default=0) + 1
            labels = labels._replace(several=classes.count or len(labels.names or range(most)))
    if labels.unlabeled == found.records and found.complete:
        raise UserError(f"none of the {found.records:,} records has a label ('{found.name}'); name data that have them")
    if labels.unlabeled and not classes.keep_unlabeled:
        key = next(key for key in found.occurrences if key is None or (labels.ids or {}).get(key) == UNLABELED)
        said = ("null (an empty list means none)" if found.several else "empty or null") if key is None else key
        raise UserError(f"{found.where(key)}: '{found.name}' is {said}; leave out records without a label")
    return labels


def _encoder(
    found: LabelSurvey, ids: dict[LabelKey, int] | None, names: Sequence[str] | None, decided_by: str | None
) -> LabelEncoder:
    hidden = sum(n for key, (n, _) in found.occurrences.items() if key is None or (ids or {}).get(key) == UNLABELED)
    return LabelEncoder(ids, tuple(names) if names else None, decided_by, found.given, hidden)


def _regression(found: LabelSurvey) -> LabelEncoder:
    if found.given:
        raise UserError(
            "preprocess.labels names classes, and objective.num_labels is 1 (regression); remove one of them"
        )
    words = [text for text in found.texts if class_names.parse_number(text) is None]
    if words:
        raise UserError(
            f"objective.num_labels is 1 (regression) but the labels are texts ('{words[0][:60]}' at "
            f"{found.where(words[0])}); set objective.num_labels={len(found.texts)}"
        )
    labels = _encoder(found, None, None, None)
    if found.records > 1 and not found.fraction and set(found.occurrences) <= {-1, "-1", "-1.0", None}:
        return labels._replace(unlabeled=found.records)
    return labels


def _from_classifier_names(found: LabelSurvey, classes: ClassSpec) -> LabelEncoder | None:
    """Map labels by the class names of the classifier; None if it has none or they differ (an error if `required`)."""
    if classes.names is None or classes.count not in (None, len(classes.names)):
        return None
    ids = {key: _class_id(key, classes.names, found.has_bools) for key in found.occurrences}
    known = {key: number for key, number in ids.items() if number is not None}
    own = [find_class_id(name, classes.names) for name in found.given or () if not classes.required]
    if len(known) == len(ids) and None not in own and len(set(own)) == len(own):
        return _encoder(found, known, classes.names, "start")
    if not classes.required:
        return None
    bad = next(key for key, number in ids.items() if number is None)
    hint = "; preprocess.labels: [...] can name them by id" if found.given_by != "labels" else ""
    raise UserError(
        f"{found.where(bad)}: label '{str(bad)[:60]}' is not one of those: {format_names(classes.names)}{hint}"
    )


def _class_id(key: LabelKey, names: Sequence[str], has_bools: bool) -> int | None:
    number = find_class_id(key, names)
    return find_class_id(["False", "True"].index(str(key)), names) if number is None and has_bools else number


def _from_data_names(found: LabelSurvey, classes: ClassSpec) -> LabelEncoder | None:
    """By names that the task or its data set gives, else by the texts in the data in sorted order."""
    names: list[str] | None = list(found.given) if found.given else None
    decided_by = found.given_by
    if names is None and (not found.texts or _are_class_ids(found, classes) or found.has_bools):
        return None
    if names is None:
        if classes.required:
            raise UserError(
                "its labels are texts, the training data's were numbers; use the numbers here too, or name the ids: "
                "preprocess.labels: [name of 0, name of 1, ...]"
            )
        names, decided_by = sorted(found.texts), "data"
        if class_names.are_integers(names):
            names.sort(key=float)
        elif str(UNLABELED) in names and len(names) - 1 == classes.count:
            names.remove(str(UNLABELED))
    unseen = decided_by == "data" and not found.complete and len(names) < (classes.count or 0)
    if classes.count not in (None, len(names)) and not unseen:
        few = decided_by == "data" and len(names) < (classes.count or 0)
        if len(names) == 1:  # num_labels=1 would be a regression
            raise UserError(
                f"objective.num_labels is {classes.count} but the data have one label ({format_names(names)}); name "
                "data with several, or name all of them: preprocess.labels: [...]"
            )
        also = ", or name all of them: preprocess.labels: [...]" if few else ""
        if decided_by == "data" and all(class_names.parse_number(name) is not None for name in names):
            also += ", or to 1 for regression"
        raise UserError(
            f"objective.num_labels is {classes.count} but the data have {len(names)} labels ({format_names(names)}); "
            f"set objective.num_labels={len(names)}{also}"
        )
    numbers = {key: find_class_id(key, names) for key in found.occurrences}
    ids = {key: UNLABELED if number is None else number for key, number in numbers.items()}
    return _encoder(found, ids, names, decided_by)


def _are_class_ids(found: LabelSurvey, classes: ClassSpec) -> bool:
    """Whether all texts are ids of the classifier."""
    ids = {class_names.parse_class_id(text) for text in found.texts}
    if None in ids or classes.count is None or (UNLABELED in ids and len(ids) == classes.count):
        return False
    return all(UNLABELED <= number < classes.count for number in ids if number is not None)


def _from_numbers(found: LabelSurvey, classes: ClassSpec) -> LabelEncoder:
    ids: dict[LabelKey, int] = {}
    for key in found.occurrences:
        number = {"False": 0, "True": 1}.get(str(key)) if found.has_bools else None
        if number is None:
            number = UNLABELED if key is None else class_names.parse_class_id(key)
        if number is None or number < UNLABELED or (classes.count is not None and number >= classes.count):
            most = max([n for n in found.numbers if n >= 0], default=0) + 1
            fits = f", or set objective.num_labels={most}" if most > (classes.count or most) else ""
            raise UserError(
                f"{found.where(key)}: '{found.name}' is {key}, but ids go from 0 to {(classes.count or most) - 1} "
                f"(objective.num_labels is {classes.count}); correct it, name the classes (preprocess.labels){fits}"
            )
        ids[key] = number
    return _encoder(found, ids, None, None)


def label_metadata(labels: LabelEncoder, found: LabelSurvey) -> dict[str, Any]:
    """The entries of `Store.meta` about labels."""
    about: dict[str, Any] = {
        "labels": labels.names and list(labels.names),
        "labels_by": labels.decided_by,
        "labels_given": labels.given and list(labels.given),
        "hidden": labels.unlabeled,
    }
    about |= {"label_lists": {"labels": found.assigned, "without": found.without}} if found.several else {}
    return about | ({"empty_texts": found.empty_texts} if found.empty_texts else {})


def report_lines(meta: Mapping[str, Any], *, training: bool) -> list[str]:
    """Lines that report the labels of a task, from its store's meta."""
    names: list[str] = meta.get("labels") or []
    given, by = meta.get("labels_given"), meta.get("labels_by")
    report = []
    if by == "start" and given and given != names:
        order = ", ".join(f"{name}={find_class_id(name, names)}" for name in given)
        report.append(f"labels matched by name: the data have the order {format_names(given)}; ids here are {order}")
    elif by == "start" and training:
        report.append(f"labels: {_numbered(names)} (those of the classifier it starts from)")
    elif by in _ORDERS:
        report.append(f"labels: {_numbered(names)} ({_ORDERS[by]})")
    if meta.get("hidden"):
        report.append(f"{meta['hidden']:,} of {meta['records']:,} records have no label and are left out of the scores")
    if lists := meta.get("label_lists"):
        known = max(meta["records"] - (meta.get("hidden") or 0), 1)
        report.append(f"{lists['labels'] / known:.2f} labels a text; {lists['without']:,} texts have none")
    if meta.get("empty_texts"):
        report.append(f"{meta['empty_texts']:,} of {meta['records']:,} records have an empty text")
    return report


def _numbered(names: Sequence[str]) -> str:
    return format_names([f"{number}={name}" for number, name in enumerate(names)], 120)
