"""Write a configuration as commented YAML."""

import re
from dataclasses import dataclass, field
from typing import Any

from bertjax.config.loading.load import build
from bertjax.config.loading.yaml_reader import dump_flow, parse, to_plain
from bertjax.config.schema.run import Config
from bertjax.errors import UserError

SCHEMA_FILE = ".bertjax.schema.json"
WIDTH = 118


@dataclass
class Recipe:
    """What goes into the file.

    Attributes:
        title: the first comment, without `#`.
        commands: lines that are commands, shown below it.
        notes: further comments.
        pretrained: published weights to start from, or None.
        model, tokenizer: sections for a model that starts from random weights.
        stage: the only stage; a key may be in `comments`.
        comments: {key of the stage or of the data's `preprocess`: what to say after it}.
    """

    title: str
    commands: list[str]
    name: str
    stage: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    pretrained: str | None = None
    model: dict[str, Any] | None = None
    tokenizer: dict[str, Any] | None = None
    comments: dict[str, str] = field(default_factory=dict)


def render(recipe: Recipe) -> tuple[str, Config]:
    """Return the YAML text and what it says without `pretrained`. Raises UserError if the loader would refuse it."""
    lines = [f"# {recipe.title}", *(f"#   {command}" for command in recipe.commands)]
    lines += [f"# {note}" for note in recipe.notes]
    lines += [
        "# `bertjax schema` lists all options; an editor with the YAML language server completes them by this line:"
    ]
    lines += [f"# yaml-language-server: $schema={SCHEMA_FILE}"]
    if recipe.pretrained is not None:
        lines += [f"pretrained: {dump_flow(recipe.pretrained)}{_comment('weights, sizes and tokenizer')}"]
    for key, section in (("model", recipe.model), ("tokenizer", recipe.tokenizer)):
        if section is not None:
            lines += [*_entry(key, section, "", recipe.comments)]
    lines += [f"run: {dump_flow({'name': recipe.name})}{_comment(f'the run folder is runs/{recipe.name}')}"]
    lines += ["stages:"]
    stage = [line for key, value in recipe.stage.items() for line in _entry(key, value, "    ", recipe.comments)]
    lines += ["  - " + stage[0].removeprefix("    "), *stage[1:]]
    text = "\n".join(lines) + "\n"
    return text, check(text)


def _flow(value: Any) -> str:
    """A value in one line, with `2e-5` for `2.0e-05`."""
    return re.sub(r"\b(\d)\.0e-0(\d)", r"\1e-\2", dump_flow(value))


def _comment(text: str | None) -> str:
    return f"  # {text}" if text else ""


def _entry(key: str, value: Any, indent: str, comments: dict[str, str]) -> list[str]:
    """`key: value` in one line if it fits and none of its keys has a comment, else its parts below it."""
    line = f"{indent}{_flow(key)}: {_flow(value)}"
    inner = isinstance(value, dict | list) and any(note in _keys(value) for note in comments)
    if not isinstance(value, dict | list) or (len(line) <= WIDTH and not inner):
        return [line + _comment(comments.get(key))]
    lines = [f"{indent}{_flow(key)}:{_comment(comments.get(key))}"]
    if isinstance(value, dict):
        return lines + [part for name, item in value.items() for part in _entry(name, item, indent + "  ", comments)]
    if not all(isinstance(item, dict) for item in value):
        return lines + [f"{indent}  - {_flow(item)}" for item in value]
    for item in value:
        parts = [part for name, each in item.items() for part in _entry(name, each, indent + "    ", {})]
        lines += [f"{indent}  - {parts[0].lstrip()}", *parts[1:]]
    return lines


def _keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for item in value.values() for key in _keys(item)}
    return set()  # comments are for the training data, not for the evaluations in a list


def check(text: str) -> Config:
    """Load the text like a file, without `pretrained`, which may need a network."""
    problems: list[str] = []
    content = to_plain(parse(text, lambda line: f"line {line}", problems))
    if content.pop("pretrained", None) is not None and content["stages"][0]["objective"]["kind"] == "text_to_text":
        content |= {"model": {"family": "t5"}, "tokenizer": {"kind": "sentencepiece"}}
    if problems:
        raise UserError(problems[0])
    return build(content, where="the configuration")
