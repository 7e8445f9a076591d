"""What evaluations fitted for predictions (a null threshold, a calibration), kept in the folder of a checkpoint step.

`fitted.json` is {evaluation name: JSON object with the `kind` of the evaluation and the `step`}. Evaluations end after
a step is saved, so the file is not among the sealed items; it is copied with the step. A Hugging Face folder has the
same object in `bertjax_fitted.json`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertjax.errors import UserError
from bertjax.storage import atomic
from bertjax.storage.model_hub import FITTED as FITTED_HF
from bertjax.storage.text import read_bytes

FITTED = "fitted.json"
Fits = Mapping[str, Mapping[str, Any]]


def fits_file(folder: Path) -> Path:
    """The file of a checkpoint step, or of a Hugging Face folder."""
    return folder / (FITTED_HF if (folder / "config.json").is_file() else FITTED)


def read_fits(folder: Path, step: int | None = None) -> dict[str, dict[str, Any]]:
    """The fits kept with a step, or with a Hugging Face folder; none without the file.

    Raises UserError when the file is damaged or belongs to another step: predictions would silently change.
    """
    path = fits_file(folder)
    try:
        found = json.loads(read_bytes(path), parse_constant=_refuse)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(fit, dict) and "kind" in fit for fit in found.values()):
        raise UserError(f"{path}: damaged; copy it again, or delete it (bertjax evaluate can make it again)")
    if other := [fit["step"] for fit in found.values() if step is not None and fit.get("step") != step]:
        raise UserError(f"{path}: is of step {other[0]}, not of step {step}; delete it")
    return found


def _refuse(name: str) -> None:
    """NaN and Infinity, which no fit holds."""
    raise ValueError(name)


def write_fits(folder: Path, fits: Fits) -> Path:
    """Add fits to those of a step, or of a Hugging Face folder -> the file. Raises OSError, and UserError as above."""
    path = fits_file(folder)
    atomic.write_json_atomic(path, read_fits(folder) | {name: dict(fit) for name, fit in fits.items()}, durable=True)
    return path
