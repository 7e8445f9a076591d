"""`bertjax export --adapter`: write the LoRA of a checkpoint as a folder of the peft library."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from bertjax.config.loading.pretrained import locate_model
from bertjax.errors import StorageError, UserError
from bertjax.evaluation.restore import best_step, remote_step
from bertjax.interop import peft_folder
from bertjax.models import param_paths, registry
from bertjax.storage import pretrained
from bertjax.training.checkpoint import adapters
from bertjax.training.checkpoint.locate import find
from bertjax.training.checkpoint.reader import CheckpointReader


def export_adapter(source: str | Path, out: Path, best: str | None = None) -> None:
    """Write the LoRA of a checkpoint, and its heads, as a folder of the peft library.

    best: the score whose best step is taken, instead of the last one.

    Raises UserError for a checkpoint without LoRA, or one that peft has no place for, StorageError when `out` cannot be
    written.
    """
    place = locate_model(source, step=remote_step(source, best=best))
    with pretrained.name_in_errors(place):
        found = find(place.path)
        checkpoints = CheckpointReader(found)
        if best is not None:
            checkpoints.ref = replace(found, step=best_step(checkpoints, best))
        meta, config = checkpoints.meta(), checkpoints.config()
        trainable = config.stages[meta["stage"]].trainable
        if trainable.kind != "lora":
            raise UserError(f"{checkpoints.path}: has no LoRA (trainable: {trainable.kind}); leave out --adapter")
        base = meta.get("base", {})
        if base.get("lora_merged"):
            raise UserError(
                f"{checkpoints.path}: its base has LoRA too, which is merged below this one; export without --adapter"
            )
        program = adapters.saved_program(checkpoints, None, adapters.lone_context(checkpoints))
        wanted = program.abstract_params()
        left = adapters.omitted_params(wanted, trainable) if base else {}
        wanted = {path: x for path, x in wanted.items() if path not in left}
        params = checkpoints.restore_params(param_paths.unflatten(wanted), meta["step"])[1]
    arrays = {path: np.asarray(x) for path, x in param_paths.flatten(params).items()}
    own = registry.abstract_params(config.model, tuple(meta["heads"]), meta["num_labels"], program.peft)
    arrays = {path: x for path, x in arrays.items() if path in own}
    try:
        peft_folder.save_adapter(out, arrays, config.model, meta["heads"], trainable, base.get("path"))
    except OSError as error:
        raise StorageError(f"{out}: could not be written: {error.strerror}") from error
