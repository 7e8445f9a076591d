"""Configurations of runs made from another one: overrides whose short keys are those of one of its stages."""

from collections.abc import Mapping
from typing import Any

from bertjax.config.loading.load import build
from bertjax.config.schema.run import Config
from bertjax.errors import UserError
from bertjax.storage.nested import flatten


def full_keys(
    overrides: Mapping[str, Any], config: Config, stage: int, *, where: str, scope: str, refused: Mapping[str, str]
) -> dict[str, Any]:
    """The overrides with keys of a stage as keys of the configuration; `where` names them in errors.

    `refused`: {key, of the stage or the configuration: why it cannot be overridden}. Raises UserError for these, for
    keys of another stage, which `scope` explains, and for two keys of which one contains the other.
    """
    found: dict[str, Any] = {}
    for key, value in overrides.items():
        full = _full_key(key, config, stage, f"{where}: {key}: {scope}")
        for name in (full, *flatten({full: value})):
            field = name.removeprefix(f"stages.{config.stages[stage].name}.")
            if reason := next((why for no, why in refused.items() if f"{field}.".startswith(f"{no}.")), None):
                raise UserError(f"{where}: {key}: {reason}")
        if other := next(
            (one for one in found if f"{one}.".startswith(f"{full}.") or full.startswith(f"{one}.")), None
        ):
            raise UserError(f"{where}: {key}: {other} is given too, which changes the same; leave one of them out")
        found[full] = value
    return found


def _full_key(key: str, config: Config, stage: int, problem: str) -> str:
    """The key with the name of the stage. Raises UserError where it names another stage."""
    first, *rest = key.split(".")
    name = config.stages[stage].name
    if first not in Config.model_fields:
        return f"stages.{name}.{key}"
    if first != "stages" or not rest:
        return key
    if rest[0] not in (name, str(stage)):
        raise UserError(problem)
    return ".".join(("stages", name, *rest[1:]))


def run_config(
    config: Config, name: str, changes: Mapping[str, Any], overrides: Mapping[str, Mapping[str, Any]],
    replaced: Mapping[str, Any] | None = None,
) -> Config:  # fmt: skip
    """A validated configuration of the run NAME-`name` under the same root.

    `changes`: fields that are replaced, `replaced`: the same as plain data, `overrides`: {where they are written: keys
    of the configuration}, merged in order. Raises UserError, which says where.
    """
    run = changes.get("run", config.run)
    run = run.model_copy(update={"name": f"{run.name}-{name}"})
    made = config.model_copy(update={"compare": [], "ladder": None, **changes, "run": run})
    data = made.model_dump(mode="json") | dict(replaced or {})
    for where, sections in (overrides or {name: {}}).items():
        try:
            made = build(data, where=f"run {run.name}", sections=sections)
        except UserError as error:
            raise UserError(str(error).replace("keyword argument: ", f"{where}: ")) from None
        data = made.model_dump(mode="json")
    return made
