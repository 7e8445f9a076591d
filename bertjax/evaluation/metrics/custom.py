"""Scores of the metrics that plugins register."""

import math
import numbers
from typing import Any

from bertjax.config.schema.custom import METRICS
from bertjax.errors import BertjaxError, UserError, brief, error_line


def custom_scores(name: str, targets: Any, predictions: Any) -> dict[str, float]:
    """Call the metric of a plugin -> {name: number}, or {name_key: number} of a metric that gives several.

    Raises UserError that names the metric when its code fails or gives anything but finite or NaN numbers.
    """
    function = METRICS[name].function
    try:
        found = function(targets, predictions)
    except BertjaxError:
        raise
    except Exception as error:
        raise UserError(f"metric '{name}' ({error_line(error)}) failed: {brief(error, 200)}") from error
    if not isinstance(found, dict):
        return {name: _number(name, found)}
    named = {key if str(key).startswith(name) else f"{name}_{key}": value for key, value in found.items()}
    return {str(key): _number(name, value) for key, value in named.items()}


def _number(name: str, value: Any) -> float:
    if getattr(value, "ndim", None) == 0:  # an array of NumPy or jax
        value = value.item()
    if not isinstance(value, numbers.Real) or math.isinf(value):
        raise UserError(f"metric '{name}' gave {repr(value)[:60]}; return a number or {{name: number}}")
    return float(value)
