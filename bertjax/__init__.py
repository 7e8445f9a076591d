"""Training of BERT and T5 in JAX: a configuration lists stages, each stage trains one sharded step into a checkpoint.

The names below are imported from their modules on first use, so `import bertjax` is fast.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "Config": "bertjax.config.schema.run",
    "load": "bertjax.config.loading.load",
    "Tokenizer": "bertjax.data.tokenizers.load",
    "build_model": "bertjax.models.registry",
    "train": "bertjax.training.loop",
    "fill_mask": "bertjax.evaluation.predict",
    "answer": "bertjax.evaluation.predict",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        renamed = "; it is now called 'build_model'" if name == "apply_model" else ""
        raise AttributeError(f"module 'bertjax' has no attribute {name!r}{renamed}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
