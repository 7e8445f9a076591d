"""Names of pretrained models: a local folder, a folder in an object store, or a model on the Hugging Face Hub.

`org/name` and `name`, with or without `@revision`, are names on the Hub. A local path that exists comes first. A name
that starts with `.`, `/` or `~`, or has several slashes, is always a path.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bertjax.errors import UserError
from bertjax.storage import model_hub, remote, remote_folder
from bertjax.storage.files import resolve_path

_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?:@([\w./-]+))?", re.ASCII)


_FILE_ENDINGS = (".txt", ".json", ".jsonl", ".model", ".yaml", ".yml", ".safetensors")  # of paths, not of models


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model whose files are on this machine."""

    name: str  # as the user wrote it
    path: Path  # its folder here (or a file: tokenizers may be one)
    commit: str | None = None  # of a model on the Hub
    is_converted: bool = False  # `path` is a temporary copy in the format of Hugging Face

    @property
    def is_local(self) -> bool:
        """Whether the name is a path on this machine, and not the source of a copy."""
        return self.commit is None and not remote.is_remote(self.name) and not self.is_converted

    @property
    def record(self) -> dict[str, str] | None:
        """Name and commit of a model on the Hub, for the meta data of checkpoints; None for a folder."""
        return {"name": self.name, "commit": self.commit} if self.commit else None

    def __str__(self) -> str:
        """The name for messages and records: a path, or the name with its commit."""
        if self.commit is None:
            return str(self.path) if self.is_local else self.name
        return f"{self.name.partition('@')[0]}@{self.commit}"


def hub_name(name: str | Path, base: Path | None = None) -> tuple[str, str | None] | None:
    """(model, revision or None) of a name on the Hub; None for a path, which exists below `base` or looks like one."""
    found = _HUB_NAME.fullmatch(str(name))
    if found is None or str(name).endswith(_FILE_ENDINGS):
        return None
    try:
        if resolve_path(str(name), base or Path.cwd()).exists():
            return None
    except OSError:  # a name too long
        return None
    return found[1], found[2]


def locate(name: str | Path, base: Path | None = None, *, weights: bool = True, step: str | None = None) -> Pretrained:
    """Find a pretrained model and bring what is not on this machine: with `weights` all of it, else its small files.

    `base`: where relative paths start (default: the current folder). `step`: of a run in an object store, the folder of
    the step to bring. Raises UserError for a name that is neither a path
    that exists nor a model that can be fetched, StorageError when an object store cannot be read.
    """
    text = str(name)
    if remote.is_remote(text):
        return Pretrained(text, remote_folder.fetch(text, weights=weights, step=step))
    if found := hub_name(name, base):
        folder, commit = model_hub.fetch(*found, weights=weights)
        return Pretrained(text, folder, commit)
    path = resolve_path(text, base or Path.cwd()) if base else Path(text).expanduser()
    try:
        if path.exists():
            return Pretrained(text, path)
    except OSError:
        pass
    raise UserError(f"{str(path)[:200]}: no such folder")


@contextmanager
def name_in_errors(found: Pretrained) -> Iterator[None]:
    """Name the model in errors instead of the folder of its copy."""
    try:
        yield
    except UserError as error:
        if found.is_local:
            raise
        raise UserError(str(error).replace(str(found.path), found.name)) from None
