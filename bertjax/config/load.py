"""From a YAML file and overrides to one checked `Config`, and back to YAML.

Everything wrong is reported at once, in one `UserError` with one line for each problem. Relative paths inside a
configuration are taken from the current directory; only `extends` is relative to the file that says it.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bertjax.config import hf_fields, merge, strict_yaml, t5_sizes
from bertjax.config.earlier import with_earlier_meaning
from bertjax.config.locations import location_problem
from bertjax.config.problems import describe, find, masked, report
from bertjax.config.schema import BertConfig, Config
from bertjax.config.step_meta import is_step, read_meta, steps_in
from bertjax.config.strict_yaml import Node, located, plain
from bertjax.errors import UserError

# Where config.json of Hugging Face calls a size by another name; DistilBertConfig's own defaults stand beside it.
_BERT = {
    name: (name, None) for name in BertConfig.model_fields
    if name not in ("family", "config_from", "position_init", "qa_dropout")
}  # fmt: skip
DISTILBERT = {
    "vocab_size": ("vocab_size", 30522),
    "hidden_size": ("dim", 768),
    "num_hidden_layers": ("n_layers", 6),
    "num_attention_heads": ("n_heads", 12),
    "intermediate_size": ("hidden_dim", 3072),
    "max_position_embeddings": ("max_position_embeddings", 512),
    "hidden_act": ("activation", "gelu"),
    "hidden_dropout_prob": ("dropout", 0.1),
    "attention_probs_dropout_prob": ("attention_dropout", 0.1),
    "initializer_range": ("initializer_range", 0.02),
    "classifier_dropout": ("seq_classif_dropout", 0.2),
    "qa_dropout": ("qa_dropout", 0.1),
}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a YAML file, the files it extends and `key.path=value` overrides.

    Raises UserError with one line per problem: `file:line: key.path: reason (got value); did you mean 'x'?`.
    """
    problems: list[str] = []
    tree = merge.read_chain(Path(path), problems)
    return _finish(tree, overrides, problems)


def build(data: dict[str, Any], overrides: Sequence[str] = (), *, where: str = "config") -> Config:
    """The same from plain data, such as the configuration stored in a checkpoint; `where` names it in errors."""
    return _finish(located(data, where), overrides, [])


def build_kept(kept: dict[str, Any], overrides: Sequence[str] = (), *, where: str) -> Config:
    """The same from a configuration that a run folder or a checkpoint keeps, maybe written by an earlier version."""
    return build(with_earlier_meaning(kept), overrides, where=where)


def load_kept(path: Path) -> Config:
    """The configuration in a run folder's config.yaml, maybe written by an earlier version."""
    problems: list[str] = []
    tree = strict_yaml.read(path, problems)
    return _finish(located(with_earlier_meaning(plain(tree)), str(path)), (), problems)


def _finish(tree: Node, overrides: Sequence[str], problems: list[str]) -> Config:
    tree = merge.merge(tree, merge.overrides_tree(overrides, problems), problems)
    _fill_sizes(tree, problems)
    config = _validate(tree, problems)
    _refuse_control_characters(tree, [], problems)
    if problems or config is None:
        raise report(problems)
    return config


def _validate(tree: Node, problems: list[str]) -> Config | None:
    """Strict: text is never taken for a number or a boolean. A whole float such as 1e5 is a whole number."""
    try:
        return Config.model_validate(plain(tree), strict=True)
    except ValidationError as error:
        whole = [
            find(tree, item["loc"]).node for item in error.errors()
            if item["type"] == "int_type" and isinstance(item["input"], float) and item["input"].is_integer()
        ]  # fmt: skip
        for node in whole:
            node.value = int(node.value)
        if whole:
            return _validate(tree, problems)
        problems += describe(error, tree)
        return None


def _refuse_control_characters(node: Node, path: list[str], problems: list[str]) -> None:
    if isinstance(node.value, dict | list):
        items = node.value.items() if isinstance(node.value, dict) else enumerate(node.value)
        for key, item in items:
            _refuse_control_characters(item, [*path, str(key)], problems)
    elif isinstance(node.value, str) and any(ord(char) < 32 for char in node.value):
        head = f"{node.where}: {'.'.join(path)}: "
        if not any(problem.startswith(head) for problem in problems):
            problems.append(f"{head}control characters are not allowed (got {node.value!a:.60})")


def _fill_sizes(tree: Node, problems: list[str]) -> None:
    """Replaces `model.config_from` with the sizes found there; a size given beside it stands."""
    model = tree.value.get("model")
    source = model.value.pop("config_from", None) if model is not None and isinstance(model.value, dict) else None
    if source is None or source.value is None:
        return
    head = f"{source.where}: model.config_from"
    if not isinstance(source.value, str):
        problems.append(f"{head}: must be the path of a folder (got {json.dumps(plain(source))[:60]})")
        return
    if problem := location_problem(source.value, remote=False):
        problems.append(f"{head}: {problem}")
        return
    try:
        sizes = resolve_sizes(source.value)
    except UserError as error:
        problems.append(f"{head}: {error}")
        return
    family = model.value.get("family")
    if family is not None and family.value != sizes["family"]:
        found = sizes["family"]
        problems.append(f"{family.where}: model.family: {source.value} holds a {found} (got {family.value!r})")
        return
    where = f"{source.where} (from {source.value})"
    model.value = {key: located(value, where) for key, value in sizes.items()} | model.value


def resolve_sizes(folder: str | Path) -> dict[str, Any]:
    """The fields of BertConfig or T5Config that a Hugging Face folder, a bertjax run or a checkpoint describes.

    Names follow transformers' BertConfig, DistilBertConfig and T5Config. Raises UserError.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / "config.json").is_file():
        return _from_hugging_face(folder / "config.json")
    if found := _checkpoint_in(folder):
        model = read_meta(found)["config"].get("model") or {}
        return {"family": "bert"} | {key: value for key, value in model.items() if key != "config_from"}
    full = folder.resolve()
    runs = [above.parent for above in (full, *full.parents[:2]) if above.name == "checkpoints"]
    for place in (folder, *runs):
        if (place / "config.yaml").is_file():
            model = strict_yaml.read(place / "config.yaml", []).value.get("model")
            sizes = plain(model) if model is not None else {}
            return {"family": "bert"} | {key: value for key, value in sizes.items() if key != "config_from"}
    raise UserError(
        f"{folder}: holds neither config.json (Hugging Face) nor config.yaml (a bertjax run), and is no checkpoint"
    )


def _checkpoint_in(folder: Path) -> Path | None:
    """The folder itself where it is a checkpoint step, else the newest step in it, or of the last stage in it."""
    if is_step(folder):
        return folder
    places = [folder] if steps_in(folder) else [p for p in sorted(folder.glob("[0-9][0-9]-*")) if steps_in(p)]
    return places[-1] / str(steps_in(places[-1])[-1]) if places else None


def _from_hugging_face(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(strict_yaml.read_text(path, strict_yaml.MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({str(error)[:80]})") from None
    family = found.get("model_type") if isinstance(found, dict) else None
    if family not in ("bert", "distilbert", "t5"):
        raise UserError(f"{path}: model_type must be bert, distilbert or t5 (got {family!a:.60})")
    hf_fields.check(path, found)
    if family == "t5":
        return t5_sizes.from_hugging_face(path, found)
    names = _BERT if family == "bert" else DISTILBERT
    sizes = {ours: found.get(theirs, default) for ours, (theirs, default) in names.items()}
    sizes = {key: value for key, value in sizes.items() if value is not None}
    if "hidden_act" in sizes:
        sizes["hidden_act"] = hf_fields.activation(path, names["hidden_act"][0], sizes["hidden_act"])
    if sizes.get("classifier_dropout") == sizes.get("hidden_dropout_prob", 0.1):
        sizes.pop("classifier_dropout", None)
    return {"family": family, **sizes} | ({"type_vocab_size": 0} if family == "distilbert" else {})


def dump(config: Config, *, for_log: bool = False) -> str:
    """YAML with every option; `load` of it gives an equal Config. `for_log` masks values of keys named like secrets."""
    data = config.model_dump(mode="json")
    return strict_yaml.dump(masked(data) if for_log else data)


def identity(config: Config) -> dict[str, Any]:
    """The part of a configuration that decides what is learnt: model, tokenizer, data, stages and seed.

    Where and how it runs (mesh, dtype, logging, checkpoints, evaluations) may change when a run is resumed.
    """
    data = config.model_dump(mode="json", include={"model", "tokenizer", "tasks", "mixtures", "stages"})
    for stage in data["stages"]:
        stage.pop("evaluate")
        stage.pop("grad_accum")
        stage.pop("init_base", None)
    return data | {"seed": config.run.seed, "dropout_rng": config.run.dropout_rng}


def fingerprint(config: Config) -> str:
    """SHA-256 (hexadecimal) of `identity`: equal fingerprints mean that one run may continue the other."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()


def differences(old: Config, new: Config) -> list[str]:
    """`key.path: old -> new` for every field of `identity` that differs."""
    before, after = flat(identity(old)), flat(identity(new))
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    return [f"{key}: {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}" for key in keys]


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else None
    if items is None:
        return {prefix[:-1]: data}
    return {key: leaf for name, item in items for key, leaf in flat(item, f"{prefix}{name}.").items()}
