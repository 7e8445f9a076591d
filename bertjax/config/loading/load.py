"""Load a checked `Config` from a YAML file and overrides, write it back as YAML, and compare configurations.

All problems are reported in one `UserError`, one line each. Relative paths inside a configuration start at the current
directory; only `extends` is relative to the file that contains it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bertjax.config.loading import named_tasks, plugins, pretrained, yaml_reader
from bertjax.config.loading.earlier_versions import upgrade_config
from bertjax.config.loading.error_messages import config_error, format_errors, locate, mask_secrets
from bertjax.config.loading.overrides import merge, parse_overrides, parse_sections, read_with_extends
from bertjax.config.loading.shipped import resolve_config
from bertjax.config.loading.yaml_reader import Node, to_nodes, to_plain
from bertjax.config.schema.run import Config
from bertjax.errors import UserError
from bertjax.storage.nested import flatten

_UNSAFE = re.compile("[\x00-\x1f\ud800-\udfff]")


def load(path: str | Path, overrides: Sequence[str] = (), sections: Mapping[str, Any] | None = None) -> Config:
    """Load a YAML file, the files it extends, `sections` merged like YAML and `key.path=value` overrides.

    `path` may be the name of a shipped configuration, such as `bert/pretrain_base`; a file of that name has precedence.
    Imports the plugins that they list. Raises UserError with one line per problem: `file:line: key.path: reason (got
    value); did you mean 'x'?`.
    """
    return _with_plugins(lambda problems: read_with_extends(resolve_config(path), problems), overrides, sections)


def build(
    data: dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    where: str = "config",
    sections: Mapping[str, Any] | None = None,
) -> Config:
    """Build a configuration from plain data, sections and overrides; `where` names the data in errors."""
    return _with_plugins(lambda problems: to_nodes(data, where), overrides, sections)


def build_saved(
    saved: dict[str, Any], overrides: Sequence[str] = (), *, where: str, sections: Mapping[str, Any] | None = None
) -> Config:
    """Build a configuration saved in a run folder or a checkpoint, possibly by an earlier version.

    Only plugins in `sections` and `overrides` are imported. Raises UserError that names the plugins of the saved
    configuration when it is not valid without them.
    """
    problems: list[str] = []
    named = _merge_changes(Node({}, where), overrides, sections, problems)
    if "plugins" in named.value:
        plugins.import_listed(named.value["plugins"])
    try:
        tree = to_nodes(upgrade_config(saved), where)
        return _check(_merge_changes(tree, overrides, sections, []), problems)
    except UserError:
        if missing := plugins.not_loaded(saved.get("plugins")):
            raise plugins.missing_plugins(where, missing) from None
        raise


def load_saved(path: Path) -> Config:
    """Load the config.yaml of a run folder, possibly written by an earlier version."""
    problems: list[str] = []
    tree = yaml_reader.read(path, problems)
    return _check(to_nodes(upgrade_config(to_plain(tree)), str(path)), problems)


def _with_plugins(
    read: Callable[[list[str]], Node], overrides: Sequence[str], sections: Mapping[str, Any] | None
) -> Config:
    """Read, import the plugins found, and read again: merging depends on the kinds that there are."""
    problems: list[str] = []
    tree = _merge_changes(read(problems), overrides, sections, problems)
    if "plugins" in tree.value:
        plugins.import_listed(tree.value["plugins"])
        problems = []
        tree = _merge_changes(read(problems), overrides, sections, problems)
    return _check(tree, problems)


def _merge_changes(
    tree: Node, overrides: Sequence[str], sections: Mapping[str, Any] | None, problems: list[str]
) -> Node:
    for changes in (parse_sections(sections or {}, problems), parse_overrides(overrides, problems)):
        if changes.value:  # or the merged tree would be said to come from them
            tree = merge(tree, changes, problems)
    return tree


def _check(tree: Node, problems: list[str]) -> Config:
    known = len(problems)
    hints = named_tasks.expand(tree, problems)
    pretrained.fill(tree, problems)
    if len(problems) > known:  # without the family, rules between sections would report what is not wrong
        raise config_error(problems)
    config = _validate(tree, problems)
    _reject_control_characters(tree, [], problems)
    if problems or config is None:
        raise config_error(named_tasks.add_hints(problems, hints))
    return config


def _validate(tree: Node, problems: list[str]) -> Config | None:
    """Validate strictly: text is never read as a number or boolean. An integral float such as 1e5 is an integer."""
    try:
        return Config.model_validate(to_plain(tree), strict=True)
    except ValidationError as error:
        integral = [
            locate(tree, item["loc"]).node for item in error.errors()
            if item["type"] == "int_type" and isinstance(item["input"], float) and item["input"].is_integer()
        ]  # fmt: skip
        for node in integral:
            node.value = int(node.value)
        if integral:
            return _validate(tree, problems)
        problems += format_errors(error, tree)
        return None


def _reject_control_characters(node: Node, path: list[str], problems: list[str]) -> None:
    if isinstance(node.value, dict | list):
        items = node.value.items() if isinstance(node.value, dict) else enumerate(node.value)
        for key, item in items:
            _reject_control_characters(item, [*path, str(key)], problems)
    elif isinstance(node.value, str) and (unsafe := _UNSAFE.search(node.value)):
        head = f"{node.where}: {'.'.join(path)}: "
        what = "control characters" if unsafe[0] < " " else "lone surrogates"
        if not any(problem.startswith(head) for problem in problems):
            problems.append(f"{head}{what} are not allowed (got {node.value!a:.60})")


def dump(config: Config, *, for_log: bool = False) -> str:
    """Write every option as YAML, which loads as an equal Config. `for_log` masks values of keys named like secrets."""
    data = config.model_dump(mode="json")
    return yaml_reader.dump(mask_secrets(data) if for_log else data)


def identity_fields(config: Config) -> dict[str, Any]:
    """The options that decide what is learned: model, tokenizer, data, stages and seed.

    Others (mesh, dtype, logging, checkpoints, evaluations) may change when a run is resumed.
    """
    data = config.model_dump(mode="json", include={"model", "tokenizer", "tasks", "mixtures", "stages"})
    for stage in data["stages"]:
        stage.pop("evaluate")
        stage.pop("early_stopping", None)
        stage.pop("grad_accum")
        stage.pop("adapter_base", None)
        for option in ("cache_features", "cache_gib"):
            stage["trainable"].pop(option, None)
    return data | {"seed": config.run.seed, "dropout_rng": config.run.dropout_rng}


def fingerprint(config: Config) -> str:
    """SHA-256 of `identity_fields`: with equal fingerprints, one run may continue the other."""
    return hashlib.sha256(json.dumps(identity_fields(config), sort_keys=True).encode()).hexdigest()


def identity_diff(old: Config, new: Config) -> list[str]:
    """`key.path: old -> new` for every identity field that differs."""
    before, after = flatten(identity_fields(old)), flatten(identity_fields(new))
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    return [f"{key}: {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}" for key in keys]
