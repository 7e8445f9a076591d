"""What a foreign checkpoint holds, in the terms of transformers."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.errors import UserError


@dataclass(frozen=True)
class ForeignCheckpoint:
    """Weights and what transformers keeps beside them."""

    weights: Mapping[str, np.ndarray]  # {name in transformers: array, laid out as torch does: Linear is [out, in]}
    files: Mapping[str, Path]  # {name in the new folder: file or folder to link}
    made: Mapping[str, Any] = field(default_factory=dict)  # {name of a JSON file: content}
    notes: tuple[str, ...] = ()  # for the user, one line each


def damaged(path: Path, error: Exception | str, format: str) -> UserError:
    """The error for a file that cannot be read as `format`."""
    reason = " ".join(str(error).split())[:100] or type(error).__name__
    return UserError(f"{path}: not a sound {format} ({reason}); download or save it again")


def check_names(
    place: Path, found: Collection[str], wanted: Collection[str], model: str, ignored: Collection[str] = ()
) -> None:
    """Raises UserError unless `found` are the names in `wanted`, apart from `ignored`."""
    if missing := [name for name in wanted if name not in found]:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"{place}: has no array '{missing[0]}'{more}; give a complete {model}")
    wanted = set(wanted)
    if extra := sorted(name for name in found if name not in wanted and name not in ignored):
        more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        raise UserError(f"{place}: array '{extra[0]}'{more} has no place in a {model}; give a checkpoint without it")
