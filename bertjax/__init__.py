"""BERT-family training in JAX: a configuration names stages, each stage trains one sharded step into a checkpoint.

Importing this package imports nothing else: the names below are fetched from their modules when they are first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Config": "bertjax.config.schema.run",
    "load": "bertjax.config.loading.load",
    "Tokenizer": "bertjax.data.tokenizers.load",
    "build_model": "bertjax.models.registry",
    "train": "bertjax.training.loop",
    "fill_mask": "bertjax.evaluation.predict",
    "answer": "bertjax.evaluation.predict",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bertjax' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
