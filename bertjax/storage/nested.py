"""Nested JSON data as flat mappings; for trees of arrays see models/param_paths.py."""

from collections.abc import Mapping
from typing import Any


def flatten(data: Any, separator: str = ".", *, lists: bool = True, prefix: str = "") -> dict[str, Any]:
    """{"a.b.0": leaf} of mappings and (with `lists`) lists; empty ones have no entry."""
    if isinstance(data, Mapping):
        items: Any = data.items()
    elif lists and isinstance(data, list):
        items = enumerate(data)
    else:
        return {prefix.removesuffix(separator): data}
    found: dict[str, Any] = {}
    for name, item in items:
        found |= flatten(item, separator, lists=lists, prefix=f"{prefix}{name}{separator}")
    return found
