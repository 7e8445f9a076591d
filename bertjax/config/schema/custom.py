"""What plugins add beside kinds: metrics, which the schema accepts by name, and callbacks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticKnownError, core_schema

MetricInputs: TypeAlias = Literal["texts", "labels"]
TEXT_METRICS = (
    "accuracy", "f1", "mean_3class_f1", "matthews", "pearson", "spearman", "squad", "trivia_qa", "exact_match", "bleu",
    "rouge", "multirc", "record", "wsc",
)  # fmt: skip


@dataclass(frozen=True)
class CustomMetric:
    """A metric that a plugin registers; `function(targets, predictions)` gives a number or {name: number}.

    inputs: "texts" are the references of each example (list of lists of text) and the generated texts; "labels" are
    the labels [N] and the logits, float [N, C].
    """

    name: str
    function: Callable[[Any, Any], Any]
    inputs: MetricInputs


METRICS: dict[str, CustomMetric] = {}
CALLBACKS: list[Any] = []  # classes and functions, in the order of registration


def metric_names(inputs: MetricInputs) -> list[str]:
    """The metrics that an evaluation of texts or of labels may name."""
    own = [name for name, metric in METRICS.items() if metric.inputs == inputs]
    return [*TEXT_METRICS, *own] if inputs == "texts" else own


class _MetricName:
    """Marks text that must be the name of a metric, which is looked up when it is validated."""

    def __init__(self, inputs: MetricInputs) -> None:
        self.inputs = inputs

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        names = metric_names(self.inputs)
        return handler(schema) | ({"enum": names} if names else {})

    def _check(self, name: str) -> str:
        names = metric_names(self.inputs)
        if not names:
            raise ValueError(f"there is no metric '{name}': a plugin registers it by @bertjax.metric")
        if name not in names:
            quoted = [f"'{each}'" for each in names]
            expected = " or ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))
            raise PydanticKnownError("literal_error", {"expected": expected})
        return name


TextMetric = Annotated[str, _MetricName("texts")]
LabelMetric = Annotated[str, _MetricName("labels")]
