"""From the labels of a classification task to ids or numbers: one table for all that occur.

The names of the classifier that the rows are for decide the ids, and labels are matched to them by name. Without such
names ids follow the task's `labels`, the names of the data set (ClassLabel), the numbers themselves, or sorted order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bertjax.data import class_names
from bertjax.data.class_names import HIDDEN, find, shown
from bertjax.data.label_survey import Key, Survey, key_of
from bertjax.errors import UserError

_ORDERS = {"labels": "as preprocess.labels says", "source": "as the data set has them", "data": "in sorted order"}


@dataclass(frozen=True)
class Classes:
    """What the rows of a classification are for.

    Attributes:
    count: outputs of the classifier (objective.num_labels); 1 is regression, None not known.
    names: of the classifier's outputs by id, where it has any.
    required: labels outside `names` are an error; otherwise the ids are those of the data's own names.
    hidden: whether rows without a label are kept, with a weight of 0.
    """

    count: int | None = None
    names: tuple[str, ...] | None = None
    required: bool = False
    hidden: bool = False

    def as_json(self) -> dict[str, Any]:
        """What a row depends on."""
        names = self.names and list(self.names)
        return {"count": self.count, "names": names, "required": self.required, "hidden": self.hidden}


class Labels(NamedTuple):
    """How the labels of a task become numbers; sent to worker processes.

    Attributes:
    ids: of each label that occurs; None for regression, where a label is its number.
    names: by id; None where there are none.
    decided_by: start (the names of `Classes`), labels (of the configuration), source (ClassLabel), data; None: numbers.
    given: the source's own order of names where it has one.
    hidden: rows without a label.
    """

    ids: Mapping[Key, int] | None
    names: tuple[str, ...] | None
    decided_by: str | None
    given: tuple[str, ...] | None
    hidden: int

    @property
    def dtype(self) -> str:
        return "f4" if self.ids is None else "i4"

    def number(self, label: Any) -> tuple[float, float]:
        """(id or number, weight) of a label."""
        key = key_of(label)
        found = self.ids.get(key, HIDDEN) if self.ids is not None else None
        if key is None or found == HIDDEN:
            return 0.0, 0.0
        return (float(key) if found is None else found), 1.0


# ---- deciding -------------------------------------------------------------------------------------------------------


def decide(found: Survey, classes: Classes) -> Labels:
    """The table of a task's labels. Raises UserError, naming a record, for labels that do not fit the classifier."""
    if found.texts and (set(found.numbers) - {HIDDEN} or found.fraction) and not found.truth_values:
        raise UserError(f"'{found.name}' is a text in some records and a number in others; write all of them alike")
    if classes.count == 1 or (classes.count is None and found.fraction):
        labels = _regression(found)
    elif found.fraction:
        raise UserError(
            f"objective.num_labels is {classes.count} but {found.fraction[1]} has label {found.fraction[0]:g}, a "
            "fraction; set objective.num_labels=1 for regression"
        )
    else:
        labels = _by_start(found, classes) or _by_own_names(found, classes) or _by_number(found, classes)
    if labels.hidden == found.records:
        raise UserError(f"none of the {found.records:,} records has a label ('{found.name}'); name data that have them")
    if labels.hidden and not classes.hidden:
        key = next(key for key in found.found if key is None or (labels.ids or {}).get(key) == HIDDEN)
        said = "empty or null" if key is None else key
        raise UserError(f"{found.where(key)}: '{found.name}' is {said}; leave out records without a label")
    return labels


def _labels(found: Survey, ids: dict[Key, int] | None, names: Sequence[str] | None, decided_by: str | None) -> Labels:
    hidden = [key for key in found.found if key is None or (ids or {}).get(key) == HIDDEN]
    return Labels(ids, tuple(names) if names else None, decided_by, found.given, found.count(hidden))


def _regression(found: Survey) -> Labels:
    if found.given:
        raise UserError(
            "preprocess.labels names classes, and objective.num_labels is 1 (regression); remove one of them"
        )
    words = [text for text in found.texts if class_names.number_in(text) is None]
    if words:
        raise UserError(
            f"objective.num_labels is 1 (regression) but the labels are texts ('{words[0][:60]}' at "
            f"{found.where(words[0])}); set objective.num_labels={len(found.texts)}"
        )
    labels = _labels(found, None, None, None)
    if found.records > 1 and not found.fraction and set(found.found) <= {-1, "-1", "-1.0", None}:
        return labels._replace(hidden=found.records)
    return labels


def _by_start(found: Survey, classes: Classes) -> Labels | None:
    """By the names of the classifier; None where it has none, or others than the data (an error if `required`)."""
    if classes.names is None or classes.count not in (None, len(classes.names)):
        return None
    ids = {key: _id(key, classes.names, found.truth_values) for key in found.found}
    known = {key: number for key, number in ids.items() if number is not None}
    own = [find(name, classes.names) for name in found.given or () if not classes.required]
    if len(known) == len(ids) and None not in own and len(set(own)) == len(own):
        return _labels(found, known, classes.names, "start")
    if not classes.required:
        return None
    bad = next(key for key, number in ids.items() if number is None)
    hint = "; preprocess.labels: [...] can name them by id" if found.given_by != "labels" else ""
    raise UserError(f"{found.where(bad)}: label '{str(bad)[:60]}' is not one of those: {shown(classes.names)}{hint}")


def _id(key: Key, names: Sequence[str], truth_values: bool) -> int | None:
    number = find(key, names)
    return find(["False", "True"].index(str(key)), names) if number is None and truth_values else number


def _by_own_names(found: Survey, classes: Classes) -> Labels | None:
    """By names that the task or its data set gives, else by the texts that occur in sorted order."""
    names: list[str] | None = list(found.given) if found.given else None
    decided_by = found.given_by
    if names is None and (not found.texts or _are_ids(found, classes) or found.truth_values):
        return None
    if names is None:
        if classes.required:
            raise UserError(
                "its labels are texts, the training data's were numbers; use the numbers here too, or name the ids: "
                "preprocess.labels: [name of 0, name of 1, ...]"
            )
        names, decided_by = sorted(found.texts), "data"
        if class_names.are_numbers(names):
            names.sort(key=float)
        elif str(HIDDEN) in names and len(names) - 1 == classes.count:
            names.remove(str(HIDDEN))
    if classes.count not in (None, len(names)):
        few = decided_by == "data" and len(names) < (classes.count or 0)
        also = ", or name all of them: preprocess.labels: [...]" if few else ""
        if decided_by == "data" and all(class_names.number_in(name) is not None for name in names):
            also += ", or to 1 for regression"
        raise UserError(
            f"objective.num_labels is {classes.count} but the data have {len(names)} labels ({shown(names)}); set "
            f"objective.num_labels={len(names)}{also}"
        )
    ids = {key: find(key, names) for key in found.found}
    return _labels(found, {key: HIDDEN if number is None else number for key, number in ids.items()}, names, decided_by)


def _are_ids(found: Survey, classes: Classes) -> bool:
    """Whether all texts spell ids of the classifier."""
    ids = {class_names.whole_number(text) for text in found.texts}
    if None in ids or classes.count is None or (HIDDEN in ids and len(ids) == classes.count):
        return False
    return all(HIDDEN <= number < classes.count for number in ids if number is not None)


def _by_number(found: Survey, classes: Classes) -> Labels:
    ids: dict[Key, int] = {}
    for key in found.found:
        number = {"False": 0, "True": 1}.get(str(key)) if found.truth_values else None
        if number is None:
            number = HIDDEN if key is None else class_names.whole_number(key)
        if number is None or number < HIDDEN or (classes.count is not None and number >= classes.count):
            most = max([n for n in found.numbers if n >= 0], default=0) + 1
            fits = f", or set objective.num_labels={most}" if most > (classes.count or most) else ""
            raise UserError(
                f"{found.where(key)}: '{found.name}' is {key}, but ids go from 0 to {(classes.count or most) - 1} "
                f"(objective.num_labels is {classes.count}); correct it, name the classes (preprocess.labels){fits}"
            )
        ids[key] = number
    return _labels(found, ids, None, None)


# ---- reporting -------------------------------------------------------------------------------------------------------


def facts(labels: Labels) -> dict[str, Any]:
    """What the store of a task says of its labels."""
    return {
        "labels": labels.names and list(labels.names),
        "labels_by": labels.decided_by,
        "labels_given": labels.given and list(labels.given),
        "hidden": labels.hidden,
    }


def lines(meta: Mapping[str, Any], *, training: bool) -> list[str]:
    """Lines that report the labels of a task, from its store's meta."""
    names: list[str] = meta.get("labels") or []
    given, by = meta.get("labels_given"), meta.get("labels_by")
    report = []
    if by == "start" and given and given != names:
        order = ", ".join(f"{name}={find(name, names)}" for name in given)
        report.append(f"labels matched by name: the data have the order {shown(given)}; ids here are {order}")
    elif by == "start" and training:
        report.append(f"labels: {_numbered(names)} (those of the classifier it starts from)")
    elif by in _ORDERS:
        report.append(f"labels: {_numbered(names)} ({_ORDERS[by]})")
    if meta.get("hidden"):
        report.append(f"{meta['hidden']:,} of {meta['records']:,} records have no label and are left out of the scores")
    return report


def _numbered(names: Sequence[str]) -> str:
    return shown([f"{number}={name}" for number, name in enumerate(names)], 120)
