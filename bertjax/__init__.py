"""Training of BERT and T5 in JAX: a configuration lists stages, each stage trains one sharded step into a checkpoint.

The names below are imported from their modules on first use, so `import bertjax` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; `_MODULES` is what happens
    from bertjax.api.model import Model
    from bertjax.api.model import open as open
    from bertjax.config.loading.load import load
    from bertjax.config.schema.run import Config
    from bertjax.data.tokenizers.load import Tokenizer
    from bertjax.errors import BertjaxError, UserError
    from bertjax.evaluation.predictors.answers import answer
    from bertjax.evaluation.predictors.masks import fill_mask
    from bertjax.models.registry import build_model
    from bertjax.training.loop import train

__version__ = "0.1.0"

_MODULES = {
    "Config": "bertjax.config.schema.run",
    "load": "bertjax.config.loading.load",
    "Tokenizer": "bertjax.data.tokenizers.load",
    "build_model": "bertjax.models.registry",
    "train": "bertjax.training.loop",
    "open": "bertjax.api.model",
    "Model": "bertjax.api.model",
    "fill_mask": "bertjax.evaluation.predictors.masks",
    "answer": "bertjax.evaluation.predictors.answers",
    "BertjaxError": "bertjax.errors",
    "UserError": "bertjax.errors",
}

# `from bertjax import *` leaves Python's own `open` as it is: call `bertjax.open`.
__all__ = [
    "BertjaxError", "Config", "Model", "Tokenizer", "UserError", "__version__", "answer", "build_model", "fill_mask",
    "load", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        renamed = "; it is now called 'build_model'" if name == "apply_model" else ""
        raise AttributeError(f"module 'bertjax' has no attribute {name!r}{renamed}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({"__version__", *_MODULES})
