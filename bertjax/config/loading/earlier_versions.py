"""Configurations kept by earlier versions: an option that is missing there has the meaning it had before it existed.

Run folders and checkpoints keep every option, so one that is missing was unknown to the version that wrote them.
"""

from typing import Any


def fill_legacy_defaults(kept: Any) -> Any:
    """A kept configuration (plain data) with the options that have been added since, where the default is another."""
    if isinstance(kept, list):
        return [fill_legacy_defaults(item) for item in kept]
    if not isinstance(kept, dict):
        return kept
    found = {key: fill_legacy_defaults(value) for key, value in kept.items()}
    if found.get("kind") == "span_qa" and "doc_stride" in found:  # the preprocessing, not the objective
        found.setdefault("profile", "bert")
    return found
