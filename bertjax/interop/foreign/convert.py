"""Find out what a folder holds, and write a foreign checkpoint as a Hugging Face folder for `bertjax import`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from bertjax.errors import StorageError, UserError
from bertjax.interop import safetensors_folder
from bertjax.interop.foreign import google_bert, mesh_t5, pickled, t5x, tf_bundle
from bertjax.interop.foreign.checkpoint import ForeignCheckpoint

_WITH_TOKENIZER = "T5X and T5 Mesh TF checkpoints"


def read(place: Path, tokenizer: Path | None = None) -> ForeignCheckpoint | None:
    """What a foreign checkpoint holds; None for other folders. tokenizer: of a checkpoint without one.

    Raises UserError for a checkpoint that cannot be read, or is of an unknown model.
    """
    found = _read_own_tokenizer(place)
    if found is None:
        index = tf_bundle.find_index(place) if place.is_dir() else None
        if index is None:
            if path := t5x.find_checkpoint(place):
                return t5x.read(place, path, tokenizer)
            _reject(tokenizer)
            return None
        tensors = tf_bundle.read_index(index)
        if mesh_t5.FIRST in tensors:
            return mesh_t5.read(place, index, tensors, tokenizer)
        if not any(name.startswith("bert/") for name in tensors):
            shown = ", ".join(sorted(tensors)[:3])
            raise UserError(
                f"{index}: holds {shown[:120]}, ...: neither a BERT nor a T5 of google-research; convert it"
            )
        found = google_bert.read(place, index, tensors)
    _reject(tokenizer)
    return found


def _read_own_tokenizer(place: Path) -> ForeignCheckpoint | None:
    """The older files of transformers, which come with a tokenizer."""
    own = (safetensors_folder.WEIGHTS, safetensors_folder.INDEX, safetensors_folder.INT8_WEIGHTS)
    if not place.is_dir() or any((place / name).is_file() for name in own):
        return None
    if pickled.has_flax(place) and not (pickled.has_torch(place) and pickled.torch_is_installed()):
        return pickled.read_flax(place)
    return pickled.read_torch(place) if pickled.has_torch(place) else None


def _reject(tokenizer: Path | None) -> None:
    if tokenizer is not None:
        raise UserError(f"--tokenizer is for {_WITH_TOKENIZER}; other folders have their own: leave it out")


@contextmanager
def as_folder(found: ForeignCheckpoint, beside: Path) -> Iterator[Path]:
    """A temporary Hugging Face folder near `beside`, which need not exist. Raises StorageError."""
    home = next(above for above in (beside.absolute(), *beside.absolute().parents) if above.is_dir())
    work = None
    try:
        try:
            work = Path(mkdtemp(prefix=".bertjax-import-", dir=home))
            for name, path in found.files.items():
                (work / name).symlink_to(path.absolute())
            for name, content in found.made.items():
                safetensors_folder.write_json(work / name, content)
            weights = {name: np.ascontiguousarray(array) for name, array in found.weights.items()}
            safetensors_folder.write_tensors(work / safetensors_folder.WEIGHTS, weights)
        except OSError as error:
            raise StorageError(f"{home}: could not be written: {error.strerror}") from error
        yield work
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
