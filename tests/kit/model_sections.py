"""Model sections of Hugging Face folders."""

from pathlib import Path
from typing import Any

from bertjax.config.loading.pretrained import read_model_fields
from bertjax.config.schema.model import FAMILIES


def model_section(folder: Path, **change: Any) -> Any:
    """The section that a folder's config.json describes, with some fields changed."""
    fields = read_model_fields(folder) | change
    return FAMILIES[fields["family"]](**fields)
