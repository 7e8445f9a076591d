"""Parameters as flat dictionaries {"layers/0/mlp/output/kernel": array} and as nested ones."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import traverse_util


def keystr(path: tuple) -> str:
    """A jax key path as a string with slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Nested containers -> {path: leaf}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return {keystr(path): leaf for path, leaf in leaves}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{path: leaf} -> nested dictionaries with string keys."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")
