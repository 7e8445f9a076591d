"""The table of objectives."""

from collections.abc import Callable

from bertjax.config.schema.training import (
    ClassificationObjective,
    MlmNspObjective,
    SpanQaObjective,
    TextToTextObjective,
)
from bertjax.objectives.base import Objective
from bertjax.objectives.bert import classification, mlm_nsp, span_qa
from bertjax.objectives.text_to_text import text_to_text


def build(
    config: MlmNspObjective | SpanQaObjective | ClassificationObjective | TextToTextObjective, tasks: int = 1
) -> Objective:
    """The objective a stage names; `tasks` is how many its batches are mixed from."""
    makers: dict[str, Callable[..., Objective]] = {
        "mlm_nsp": mlm_nsp,
        "span_qa": span_qa,
        "classification": classification,
        "text_to_text": text_to_text,
    }
    return makers[config.kind](config, tasks)
