"""Fill a configuration from pretrained models: `pretrained` names one for everything, `model.config_from` for sizes.

Only the small files of a model are read here; `init_from` fetches its weights when a run is checked.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bertjax.config.huggingface.fields import read_fields
from bertjax.config.loading import yaml_reader
from bertjax.config.loading.step_meta import is_checkpoint_step, list_steps, read_meta
from bertjax.config.loading.yaml_reader import Node, to_nodes, to_plain
from bertjax.config.schema.model import FAMILIES, ModelConfig
from bertjax.errors import StorageError, UserError
from bertjax.storage import pretrained, remote, text
from bertjax.storage.locations import path_problem
from bertjax.storage.pretrained import Pretrained


def fill(tree: Node, problems: list[str]) -> None:
    """Replace `pretrained` and `model.config_from` by what they stand for. Keys given explicitly take precedence."""
    _fill_pretrained(tree, problems)
    _fill_model(tree, problems)


def _fill_pretrained(tree: Node, problems: list[str]) -> None:
    """Put the name where it is used: model.config_from, tokenizer.path and init_from of the first stage."""
    source = tree.value.pop("pretrained", None)
    if source is None or source.value is None:
        return
    fields = _read(source, "pretrained", problems)
    if fields is None:
        return
    name = source.value
    model = tree.value.setdefault("model", Node({}, source.where))
    tokenizer = tree.value.setdefault("tokenizer", Node({}, source.where))
    stages = tree.value.get("stages")
    first = stages.value[0] if stages is not None and isinstance(stages.value, list) and stages.value else None
    if isinstance(model.value, dict) and "config_from" not in model.value:
        _fill_sizes(model, source, fields, problems)
    if isinstance(tokenizer.value, dict):
        kind = _tokenizer_kind(name, FAMILIES[fields["family"]].tokenizer)
        tokenizer.value.setdefault("kind", Node(kind, source.where))
        if not {"path", "train_on"} & tokenizer.value.keys():
            tokenizer.value["path"] = Node(name, source.where)
    if first is not None and isinstance(first.value, dict):
        first.value.setdefault("init_from", Node(name, source.where))


def _tokenizer_kind(name: str, usual: str) -> str:
    """The kind of the tokenizer of a pretrained model: `usual` in its family, or `bytes`."""
    folder = pretrained.locate(name, weights=False).path
    for file in ("tokenizer_config.json", "config.json"):  # of Hugging Face
        settings = text.read_json(folder / file) if (folder / file).is_file() else None
        if isinstance(settings, dict) and (named := settings.get("tokenizer_class")):
            return "bytes" if named == "ByT5Tokenizer" else usual
    section = (_run_config(folder) or {}).get("tokenizer")
    return "bytes" if isinstance(section, dict) and section.get("kind") == "bytes" else usual


def _fill_model(tree: Node, problems: list[str]) -> None:
    """Replace `model.config_from` with the sizes found there."""
    model = tree.value.get("model")
    source = model.value.pop("config_from", None) if model is not None and isinstance(model.value, dict) else None
    if source is None or source.value is None:
        return
    if (fields := _read(source, "model.config_from", problems)) is not None:
        _fill_sizes(model, source, fields, problems)


def _read(source: Node, key: str, problems: list[str]) -> dict[str, Any] | None:
    """The model section of a pretrained model; None if there is a problem."""
    head = f"{source.where}: {key}"
    if not isinstance(source.value, str):
        shown = json.dumps(to_plain(source))[:60]
        problems.append(f"{head}: must be a folder or a model on the Hugging Face Hub (got {shown})")
        return None
    if problem := path_problem(source.value, remote=True):
        problems.append(f"{head}: {problem}")
        return None
    try:
        return read_model_fields(source.value)
    except (UserError, StorageError) as error:
        problems.append(f"{head}: {error}")
        return None


def _fill_sizes(model: Node, source: Node, fields: dict[str, Any], problems: list[str]) -> None:
    family, found = model.value.get("family"), fields["family"]
    if family is not None and family.value != found:
        problems.append(f"{family.where}: model.family: {source.value} holds a {found} (got {family.value!r})")
        return
    where = f"{source.where} (from {source.value})"
    model.value = {key: to_nodes(value, where) for key, value in fields.items()} | model.value


def locate_model(name: str | Path, base: Path | None = None, step: str | None = None) -> Pretrained:
    """Find a pretrained model and fetch its weights if they are not on this machine.

    step: of a run in an object store, the folder of the step to fetch (default: the newest).

    Raises UserError, also for a model of another kind, before its weights are fetched.
    """
    if remote.is_remote(name) or pretrained.hub_name(name, base):
        read_model_fields(name)
    return pretrained.locate(name, base, step=step)


def read_model_fields(name: str | Path) -> dict[str, Any]:
    """Read the model section of a pretrained model: a Hugging Face folder, a run or a checkpoint, by path or by name.

    Raises UserError, and StorageError when an object store cannot be read.
    """
    place = pretrained.locate(name, weights=False)
    with pretrained.name_in_errors(place):
        return _read_folder(place.path)


def read_model(name: str | Path) -> ModelConfig:
    """The model section of a pretrained model, as `read_model_fields` finds it. Raises UserError."""
    fields = read_model_fields(name)
    try:
        return FAMILIES[fields["family"]].model_validate(fields)  # type: ignore[return-value]
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{name}: model.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _read_folder(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / "config.json").is_file():
        return read_fields(folder / "config.json")
    if (config := _run_config(folder)) is None:
        missing = "has no config.json (Hugging Face) or config.yaml (a bertjax run) and is not a checkpoint"
        raise UserError(f"{folder}: {missing}")
    sizes = config.get("model") or {}
    return {"family": "bert"} | {key: value for key, value in sizes.items() if key != "config_from"}


def _run_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of a checkpoint or a run; None for another folder."""
    if found := find_checkpoint(folder):
        return dict(read_meta(found)["config"])
    full = folder.resolve()
    runs = [above.parent for above in (full, *full.parents[:2]) if above.name == "checkpoints"]
    for place in (folder, *runs):
        if (place / "config.yaml").is_file():
            return dict(to_plain(yaml_reader.read(place / "config.yaml", [])))
    return None


def find_checkpoint(folder: Path) -> Path | None:
    """Return the folder if it is a checkpoint step, else the newest step in it, in its last stage or in a run's."""
    if is_checkpoint_step(folder):
        return folder
    places = [folder] if list_steps(folder) else [p for p in sorted(folder.glob("[0-9][0-9]-*")) if list_steps(p)]
    return places[-1] / str(list_steps(places[-1])[-1]) if places else None
