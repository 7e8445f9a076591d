"""The null threshold and the calibration that a checkpoint keeps, for predictions and for evaluations on other data."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bertjax.config.schema.evaluation import SquadEvaluation
from bertjax.errors import StorageError, UserError, escape_unprintable
from bertjax.evaluation.metrics.calibration import Calibration
from bertjax.evaluation.restore import RestoredCheckpoint
from bertjax.progress import reporter
from bertjax.training.checkpoint import fits


def pick_fit(restored: RestoredCheckpoint, settings: SquadEvaluation) -> tuple[str, Mapping[str, Any]] | None:
    """(name, fit) of the evaluation that `settings` take theirs from, else of the first one that the step keeps.

    An evaluation that could not sweep a threshold yields to one that did, unless `settings` name it or exclude one.
    Raises UserError for one whose values are not those that an evaluation writes.
    """
    needed = {"null_threshold", "calibration", "data"}
    kept = {name: fit for name, fit in restored.fitted.items() if fit["kind"] == settings.kind and needed <= fit.keys()}
    swept = [] if settings.version_2 is False else [x for x, fit in kept.items() if fit["null_threshold"] is not None]
    own = settings.threshold_from or settings.name
    first = [own] if settings.threshold_from or own in swept else [*swept, own]
    name = next((name for name in [*first, *kept] if name in kept), "")
    if not name:
        return None
    if not _is_valid(kept[name]):
        where = restored.where if restored.folder is None else fits.fits_file(restored.folder)
        raise UserError(
            f"{where}: the values of '{escape_unprintable(name)[:60]}' are damaged; copy the file again, or delete it "
            "(bertjax evaluate --keep-threshold can make it again)"
        )
    return name, kept[name]


def _is_valid(fit: Mapping[str, Any]) -> bool:
    """Whether the threshold and the calibration of a fit can be used, as `answer_fit.fit_answers` makes them."""
    threshold, calibration = fit["null_threshold"], fit["calibration"]
    if threshold is not None and not _is_number(threshold):
        return False
    if calibration is None:
        return True
    if not isinstance(calibration, Mapping) or not calibration.keys() >= {*Calibration._fields, "n_best", "with_null"}:
        return False
    n_best = calibration["n_best"]
    return (
        _is_number(calibration["temperature"]) and calibration["temperature"] > 0
        and _is_number(calibration["null_bias"]) and isinstance(calibration["with_null"], bool)
        and isinstance(n_best, int) and not isinstance(n_best, bool) and n_best > 0
    )  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def describe_fits(fitted: fits.Fits) -> str:
    """What is in the fits: null thresholds, calibrations or both."""
    names = {"null_threshold": "null threshold", "calibration": "calibration"}
    return " and ".join(
        words for key, words in names.items() if any(fit.get(key) is not None for fit in fitted.values())
    )


def null_threshold(restored: RestoredCheckpoint, settings: SquadEvaluation) -> tuple[float, bool]:
    """-> (the null threshold of predictions, whether it was swept).

    An option given for this command comes first, then a number in `null_threshold`, the one that the checkpoint keeps,
    and `null_score_diff_threshold`.
    """
    if isinstance(settings.null_threshold, float):
        return settings.null_threshold, False
    found = pick_fit(restored, settings)
    if found is None or found[1]["null_threshold"] is None or settings.version_2 is False:
        return settings.null_score_diff_threshold, False
    if _is_overridden(restored, settings):
        return settings.null_score_diff_threshold, False
    return float(found[1]["null_threshold"]), True


def _is_overridden(restored: RestoredCheckpoint, settings: SquadEvaluation) -> bool:
    """Whether `null_score_diff_threshold` is not that of the run: an override has changed it."""
    before = _saved_evaluation(restored, settings.name)
    return before is not None and before.null_score_diff_threshold != settings.null_score_diff_threshold


def _saved_evaluation(restored: RestoredCheckpoint, name: str) -> SquadEvaluation | None:
    saved = restored.saved_config or restored.ctx.config
    found = next((e for e in saved.stages[restored.stage].evaluate if e.name == name), None)
    return found if isinstance(found, SquadEvaluation) else None


def use_kept_thresholds(restored: RestoredCheckpoint, name: str | None) -> RestoredCheckpoint:
    """The checkpoint, whose squad evaluations on other data than the run's take the threshold that it keeps.

    An evaluation of the run is repeated as the run made it. `name`: the only evaluation that will run.
    """
    stage = restored.ctx.config.stages[restored.stage]
    changed = [_with_kept(restored, one) if name in (None, one.name) else one for one in stage.evaluate]
    if changed == stage.evaluate:
        return restored
    stages = list(restored.ctx.config.stages)
    stages[restored.stage] = stage.model_copy(update={"evaluate": changed})
    config = restored.ctx.config.model_copy(update={"stages": stages})
    return replace(restored, ctx=replace(restored.ctx, config=config))


def _with_kept(restored: RestoredCheckpoint, one: Any) -> Any:
    if not isinstance(one, SquadEvaluation) or (one.null_threshold, one.threshold_from) != (None, None):
        return one
    before, found = _saved_evaluation(restored, one.name), pick_fit(restored, one)
    same = before is not None and before.data == one.data
    if found is None or found[1]["null_threshold"] is None or same or one.version_2 is False:
        return one
    if _is_overridden(restored, one):
        return one
    return one.model_copy(update={"threshold_from": found[0]})


def keep_fits(restored: RestoredCheckpoint, fitted: fits.Fits) -> str:
    """Keep what evaluations fitted with the checkpoint -> the file.

    Raises UserError for a copy of a model from the Hub or an object store, StorageError when it cannot be written.
    """
    if restored.folder is None:
        raise UserError(
            f"{restored.where}: is a copy of a model that is elsewhere, to which nothing is added; import it first: "
            "bertjax import MODEL runs/NAME"
        )
    try:
        path = fits.write_fits(restored.folder, fitted)
    except OSError as error:
        raise StorageError(
            f"{fits.fits_file(restored.folder)}: cannot be written ({error.strerror}); copy the checkpoint first"
        ) from None
    return str(path)


def write_export(folder: Path, fitted: fits.Fits) -> None:
    """Write what a checkpoint keeps into the Hugging Face folder that was exported from it, and say so."""
    if fitted:
        path = fits.write_fits(folder, fitted)
        reporter.say(
            f"{path}: {describe_fits(fitted) or 'fits'} of {', '.join(fitted)}, which bertjax reads with the folder"
        )
