"""Training of BERT and T5 in JAX: a configuration lists stages, each stage trains one sharded step into a checkpoint.

The names below are imported from their modules on first use, so `import bertjax` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; `_MODULES` is what happens
    from bertjax.api.model import Model
    from bertjax.api.model import open as open
    from bertjax.api.plugins import callback, load_plugins, metric, register, register_objective
    from bertjax.api.program import StageProgram, batches, build_program
    from bertjax.api.train import TrainResult, train
    from bertjax.config.loading.load import load
    from bertjax.config.schema.run import Config
    from bertjax.data.tokenizers.load import Tokenizer
    from bertjax.errors import BertjaxError, StoppedSafely, UserError
    from bertjax.evaluation.predictors.answers import answer
    from bertjax.evaluation.predictors.masks import fill_mask
    from bertjax.models.registry import build_model
    from bertjax.training.monitor.callbacks import Callback

__version__ = "0.1.0"

_MODULES = {
    "Config": "bertjax.config.schema.run",
    "load": "bertjax.config.loading.load",
    "Tokenizer": "bertjax.data.tokenizers.load",
    "build_model": "bertjax.models.registry",
    "train": "bertjax.api.train",
    "TrainResult": "bertjax.api.train",
    "StageProgram": "bertjax.api.program",
    "build_program": "bertjax.api.program",
    "batches": "bertjax.api.program",
    "Callback": "bertjax.training.monitor.callbacks",
    "callback": "bertjax.api.plugins",
    "load_plugins": "bertjax.api.plugins",
    "metric": "bertjax.api.plugins",
    "register": "bertjax.api.plugins",
    "register_objective": "bertjax.api.plugins",
    "open": "bertjax.api.model",
    "Model": "bertjax.api.model",
    "fill_mask": "bertjax.evaluation.predictors.masks",
    "answer": "bertjax.evaluation.predictors.answers",
    "BertjaxError": "bertjax.errors",
    "StoppedSafely": "bertjax.errors",
    "UserError": "bertjax.errors",
}

# `from bertjax import *` leaves Python's own `open` as it is: call `bertjax.open`.
__all__ = [
    "BertjaxError", "Callback", "Config", "Model", "StageProgram", "StoppedSafely", "Tokenizer", "TrainResult",
    "UserError", "__version__", "answer", "batches", "build_model", "build_program", "callback", "fill_mask", "load",
    "load_plugins", "metric", "register", "register_objective", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        renamed = "; it is now called 'build_model'" if name == "apply_model" else ""
        raise AttributeError(f"module 'bertjax' has no attribute {name!r}{renamed}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({"__version__", *_MODULES})
