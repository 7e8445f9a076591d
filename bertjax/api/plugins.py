"""What the user's own files register: kinds, metrics and callbacks; importing it imports no jax."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

from bertjax.config.loading import plugins
from bertjax.config.schema import base
from bertjax.config.schema.base import Section
from bertjax.config.schema.custom import CALLBACKS, METRICS, TEXT_METRICS, CustomMetric, MetricInputs
from bertjax.config.schema.data import PREPROCESS
from bertjax.config.schema.evaluation import EVALUATIONS
from bertjax.config.schema.model import FAMILIES
from bertjax.config.schema.sources import SOURCES
from bertjax.config.schema.training import OBJECTIVES
from bertjax.errors import UserError

T = TypeVar("T")
SectionT = TypeVar("SectionT", bound=type[Section])
_TABLES: dict[str, tuple[dict[str, type[Section]], str]] = {
    # class of a record -> the table of its sections, and their field that names the kind
    "SourceKind": (SOURCES, "kind"),
    "PreprocessKind": (PREPROCESS, "kind"),
    "ObjectiveKind": (OBJECTIVES, "kind"),
    "Family": (FAMILIES, "family"),
    "EvaluationKind": (EVALUATIONS, "kind"),
}


def load_plugins(*names: str | os.PathLike[str]) -> None:
    """Import plugins: paths of Python files, or names of modules; one that has not changed is imported once.

    Needed before a run that uses them is opened from its own folder: what is saved there never imports code by itself.
    Raises UserError when one cannot be found or its code fails.
    """
    for name in names:
        if not isinstance(name, str | os.PathLike):
            raise UserError(f"load_plugins: give paths or names of modules, each as an argument (got {name!r:.60})")
    plugins.load_plugins(*(os.fspath(name) for name in names))


def register(section: type[Section], record: Any) -> None:
    """Add a source, preprocess, objective or evaluation kind or a model family: its section and its record.

    The class of the record (SourceKind, PreprocessKind, ObjectiveKind, EvaluationKind, Family) says which; the name of
    the kind is the default of the section's `kind` (of a family: `family`). A class that is defined again replaces the
    one before. Raises TypeError for another record, ValueError for a name that is taken.
    """
    found = next((_TABLES[each.__name__] for each in type(record).__mro__ if each.__name__ in _TABLES), None)
    if found is None:
        raise TypeError(f"{type(record).__name__} is no record; give one of {', '.join(_TABLES)}")
    _add(*found, section, record)


def register_objective(section: SectionT) -> SectionT:
    """Class decorator: add an objective, a section with its options and a method `make(self, tasks) -> Objective`.

    The section says its `kind`, and as class variables the `heads` that it trains and the kinds of `preprocess` and
    `evaluations` that fit; a subclass of an objective (`bertjax.config.schema.training`) inherits these. `tasks` is
    the number of tasks that a batch is mixed from. Raises TypeError for a class without `make`, ValueError for a kind
    that is taken.
    """
    if not callable(getattr(section, "make", None)):
        raise TypeError(f"{section.__name__} has no method make(self, tasks), which returns an Objective")
    _add(OBJECTIVES, "kind", section, "bertjax.objectives.registry:BY_METHOD")
    return section


def _add(table: dict[str, type[Section]], tag: str, section: type[Section], implementation: Any) -> None:
    field = section.model_fields.get(tag)
    kind = field.default if field else None
    if not isinstance(kind, str):
        raise ValueError(f"{section.__name__}: give it its name: {tag}: Literal['name'] = 'name'")
    section.implementation = implementation  # type: ignore[attr-defined]
    base.register(table, kind, section)


def metric(name: str, *, inputs: MetricInputs = "texts") -> Callable[[T], T]:
    """Decorator: add a metric, a function that gives a number, or {name: number} for several.

    With inputs="texts" (evaluations of kind text_to_text) it takes the references of each example, a list of lists of
    text, and the generated texts. With inputs="labels" (kind classification) it takes the labels [N] and the logits,
    float32 [N, C]; of a regression C is 1, with several labels for one text the labels are [N, C] of 0 and 1.
    Evaluations list it in `metrics`. Raises ValueError for a taken name.
    """
    if inputs not in ("texts", "labels"):
        raise ValueError(f"metric '{name}': inputs must be 'texts' or 'labels' (got {inputs!r})")

    def add(function: T) -> T:
        before = METRICS.get(name)
        if name in TEXT_METRICS or (before and _place(before.function) != _place(function)):
            raise ValueError(f"metric '{name}' is already registered")
        METRICS[name] = CustomMetric(name, function, inputs)  # type: ignore[arg-type]
        return function

    return add


def callback(given: T) -> T:
    """Decorator of a plugin: runs that list the plugin call this class or function.

    A class is instantiated without arguments for each run; see `Callback` for its methods. A function is called after
    each step with (step, metrics). Outside a plugin give callbacks to `bertjax.train(..., callbacks=[...])` instead.
    """
    CALLBACKS[:] = [each for each in CALLBACKS if _place(each) != _place(given)]
    CALLBACKS.append(given)
    return given


def _place(defined: Any) -> tuple[str, str]:
    """The module and name of a class or function: the same when it is defined again."""
    return defined.__module__, defined.__qualname__
