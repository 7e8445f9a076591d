"""Find the files of the tokenizer that `tokenizer.path` names: a file, a folder, a run, a checkpoint or a Hub model."""

from pathlib import Path

from bertjax.config.loading.pretrained import find_checkpoint
from bertjax.data.tokenizers import byte_level, huggingface
from bertjax.storage import pretrained, remote, staging
from bertjax.storage.files import resolve_path
from bertjax.storage.pretrained import Pretrained

FILES = ("spiece.model", "tokenizer.json", "vocab.txt")  # of a folder, the first that exists is read


def locate(name: str, base: Path) -> Pretrained:
    """Find what `tokenizer.path` names and fetch its small files: a tokenizer file, or a pretrained model.

    Raises UserError, and StorageError when an object store cannot be read.
    """
    path = resolve_path(name, base)
    if remote.is_remote(path):
        copy = staging.fetch_small_files(path, [*huggingface.VOCAB_FILES, *huggingface.SETTINGS_FILES])
        if copy.is_file() or _has(copy, huggingface.VOCAB_FILES) or byte_level.is_byt5(copy):
            return Pretrained(name, copy)
    return pretrained.locate(name, base, weights=False)


def find_tokenizer(path: Path) -> Path | None:
    """The file or folder with the tokenizer of `path`, or the checkpoint step that records it; None without one."""
    if not path.is_dir() or _has(path, huggingface.VOCAB_FILES) or byte_level.is_byt5(path):
        return path
    if (step := find_checkpoint(path)) is not None:
        return step
    inside = path / "tokenizer"
    return inside if _has(inside, FILES) or byte_level.is_byt5(inside) else None


def _has(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / name).is_file() for name in names)
