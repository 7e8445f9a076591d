"""Atomic writes of small files."""

import os
from pathlib import Path


def write_text_atomic(path: Path, text: str) -> None:
    """Replace a file in one move."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
