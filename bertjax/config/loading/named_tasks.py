"""Tasks and mixtures by name: `data: glue_v002_proportional` means a section of a registry file.

A registry is a YAML file with `tasks` and `mixtures`. A name is looked up in the configuration, in the files of
`registries` in their order, and in `config/registry/t5.yaml`, which has SeqIO's names. What a configuration uses is
copied into it, so that a saved configuration is complete. A section may start from another one (`extends: NAME`), also
from the one of the same name in a later registry. `validation` in a registry says what differs for held-out data:
options of the source for a task (default: `split: validation`, for TFDS and the Hub), tasks for a mixture.
"""

import copy
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bertjax.config.loading import yaml_reader
from bertjax.config.loading.overrides import DottedOverride, expand_name, merge
from bertjax.config.loading.yaml_reader import Node, to_plain
from bertjax.config.schema.data import PREPROCESS, Mixture, Task
from bertjax.config.schema.run import FeatureLengths
from bertjax.errors import UserError, escape_unprintable
from bertjax.storage.locations import path_problem
from bertjax.storage.text import suggest_file

FOLDER = Path(__file__).resolve().parents[1] / "registry"
DEFAULT = "t5"
_LENGTHS = {"inputs": "sequence_length", "targets": "target_length"}


@dataclass
class Entry:
    """A section of a registry, after `extends`."""

    section: Node  # a mapping without `extends` and `validation`
    is_mixture: bool
    validation: Node | None


class Registry:
    """The sections of a configuration (the first layer), of its registries and of the shipped one.

    `lengths`: options of `preprocess` that tasks of all layers but the first get.
    """

    def __init__(self, layers: list[dict[str, Node]], lengths: dict[str, Node], problems: list[str]):
        self.layers, self.lengths, self.problems = layers, lengths, problems
        self.lengths_used = False  # whether a task has got one of `lengths`

    def names(self) -> list[str]:
        return list(dict.fromkeys(name for layer in self.layers for name in layer))

    def find(self, name: str, first: int = 0, seen: tuple[tuple[str, int], ...] = ()) -> Entry | None:
        """Look a name up from layer `first` on; None if no layer has it.

        Raises UserError for `extends` that leads back to itself or to no section.
        """
        at = next((at for at, layer in enumerate(self.layers) if at >= first and name in layer), None)
        if at is None:
            return None
        section = self.layers[at][name]
        if (name, at) in seen:
            raise UserError(f"{section.where}: {name}: extends leads back to itself")
        keys = dict(section.value)
        parent, validation = keys.pop("extends", None), keys.pop("validation", None)
        section, is_mixture = Node(keys, section.where), "mixture" in keys
        if parent is not None:
            base = self._find_base(name, parent, at, (*seen, (name, at)))
            is_mixture, path = base.is_mixture, f"{'mixtures' if base.is_mixture else 'tasks'}.{name}"
            section = merge(base.section, section, self.problems, Mixture if is_mixture else Task, path)
            if validation is None and (is_mixture or _fits(section, base.section)):
                validation = base.validation
        if at > 0 and not is_mixture:
            self._set_lengths(section)
        return Entry(section, is_mixture, validation)

    def _find_base(self, name: str, parent: Node, at: int, seen: tuple[tuple[str, int], ...]) -> Entry:
        if not isinstance(parent.value, str):
            raise UserError(f"{parent.where}: {name}.extends: expected the name of a task or mixture")
        base = self.find(parent.value, at + 1 if parent.value == name else 0, seen)
        if base is None:
            unknown = f"no task or mixture '{parent.value:.80}'{self.suggest(parent.value)}"
            raise UserError(f"{parent.where}: {name}.extends: {unknown}")
        return base

    def _set_lengths(self, task: Node) -> None:
        preprocess = task.value.get("preprocess") or Node({}, task.where)
        if self.lengths and isinstance(preprocess.value, dict):
            kind = _text(preprocess.value.get("kind")) or "bert_pairs"
            known = PREPROCESS[kind].model_fields if kind in PREPROCESS else {}
            given = {option: tokens for option, tokens in self.lengths.items() if option in known}
            task.value["preprocess"] = Node(preprocess.value | given, preprocess.where)
            self.lengths_used |= bool(given)

    def suggest(self, name: str, any_hint: bool = True) -> str:
        """`; did you mean 'a' or 'b'?`; else the command that lists all, with `any_hint`."""
        names = [known for known in self.names() if known != name]  # a section that extends itself may have it
        close = difflib.get_close_matches(name, names, 3, 0.6)
        close += [known for known in names if len(name) > 2 and known.startswith(name) and known not in close]
        shown = escape_unprintable(" or ".join(f"'{known}'" for known in close[:3]))
        if not shown:
            return "; `bertjax tasks` lists the shipped ones" if any_hint else ""
        return f"; did you mean {shown}?"

    def describe(self, name: str) -> dict[str, Any]:
        """Return a section as plain data for a configuration file: `{"tasks": {name: {...}}}`."""
        entry = self.find(name)
        if entry is None:
            raise UserError(f"no task or mixture '{name:.80}'{self.suggest(name)}")
        section = to_plain(entry.section)
        if entry.validation is not None:
            section["validation"] = to_plain(entry.validation)
        return {"mixtures" if entry.is_mixture else "tasks": {name: section}}

    def summary(self, name: str) -> str:
        """Return one line: source and preprocessing of a task, rate and size of a mixture."""
        ((kind, sections),) = self.describe(name).items()
        section = sections[name]
        if kind == "mixtures":
            return f"{section.get('rate', 'proportional')} mixture of {len(section.get('mixture', ()))} tasks"
        source = section.get("source")
        first = (source[0] if isinstance(source, list) else source) or {}
        data = " ".join(str(part) for part in (first.get("name") or first.get("files"), first.get("config")) if part)
        split = f" ({first['split']})" if first.get("split") else ""
        preprocess = section.get("preprocess") or {}
        how = preprocess.get("prompt") or preprocess.get("inputs") or preprocess.get("kind", "bert_pairs")
        return f"{first.get('kind', 'text')} {data}{split}: {how}"


def shipped_registry(paths: Sequence[Path] = ()) -> Registry:
    """Return the shipped registry below the files `paths`. Raises UserError for a file that is no registry."""
    problems: list[str] = []
    layers = [*(_read(path, problems) for path in paths), _read_default()]
    if problems:
        raise UserError("\n".join(problems))
    return Registry([{}, *layers], {}, problems)


def registry_path(name: str, base: Path) -> Path | None:
    """The file of an entry of `registries`: relative to `base`, or a shipped registry such as `huggingface`."""
    local = base / Path(name).expanduser()
    if local.is_file():
        return local
    shipped = {path.stem: path for path in FOLDER.glob("*.yaml")}
    return shipped.get(name)


@cache
def _read_default() -> dict[str, Node]:
    """Read `t5.yaml` once; its sections are copied where they are changed."""
    return _read(FOLDER / f"{DEFAULT}.yaml", [])


def _read(path: Path, problems: list[str]) -> dict[str, Node]:
    """Read the sections of a registry file by name."""
    tree = yaml_reader.read(path, problems)
    found: dict[str, Node] = {}
    for kind, group in tree.value.items():
        if kind not in ("tasks", "mixtures"):
            problems.append(f"{group.where}: {ascii(kind)[1:-1]}: unknown key; a registry has 'tasks' and 'mixtures'")
        elif not isinstance(group.value, dict):
            problems.append(f"{group.where}: {kind}: must be names with sections (name: section)")
        else:
            for name, section in group.value.items():
                section = expand_name(section)
                if not isinstance(section.value, dict):
                    problems.append(f"{section.where}: {kind}.{name}: must be a section (key: value)")
                elif name in found:
                    problems.append(f"{section.where}: {kind}.{name}: '{name}' is also a task of this file")
                else:
                    found[name] = section
    return found


def expand(tree: Node, problems: list[str]) -> dict[str, str]:
    """Copy the tasks and mixtures that a configuration names into it; return {unknown name: suggestion}.

    Removes `registries` and `task_feature_lengths`. Problems with registries and evaluations go to `problems`.
    """
    registries = _registry_files(tree.value.pop("registries", None), problems)
    lengths = _read_lengths(tree.value.pop("task_feature_lengths", None), problems)
    expansion = _Expansion(tree, registries, lengths, problems)
    try:
        unknown = expansion.run()
    except UserError as error:
        problems.append(str(error))
        return {}
    if lengths and not unknown and not expansion.registry.lengths_used:
        where = next(iter(lengths.values())).where
        problems.append(
            f"{where}: task_feature_lengths: is for tasks from a registry, and none is used here; set sequence_length "
            "and target_length under preprocess of the tasks"
        )
    return unknown


def _registry_files(given: Node | None, problems: list[str]) -> list[Path]:
    paths = []
    for item in _elements(given):
        name = item.value
        if not isinstance(name, str):
            problems.append(f"{item.where}: registries: expected the path of a YAML file")
        elif problem := path_problem(name, remote=False):
            problems.append(f"{item.where}: registries: {problem}")
        elif (path := registry_path(name, Path())) is None:
            shipped = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
            hint = suggest_file(Path(name)) or f"; the shipped registries are: {shipped}"
            problems.append(f"{item.where}: registries: no such file (got {name!a:.120}){hint}")
        else:
            paths.append(path)
    return paths


def _elements(given: Node | None) -> list[Node]:
    if given is None or given.value is None:
        return []
    return given.value if isinstance(given.value, list) else [given]


def _read_lengths(given: Node | None, problems: list[str]) -> dict[str, Node]:
    if given is None or given.value is None:
        return {}
    try:
        FeatureLengths.model_validate(to_plain(given), strict=True)
    except ValidationError:
        example = "{inputs: 512, targets: 114}"
        problems.append(f"{given.where}: task_feature_lengths: expected numbers of tokens, such as {example}")
        return {}
    return {_LENGTHS[key]: node for key, node in given.value.items() if node.value is not None}


class _Expansion:
    def __init__(self, tree: Node, files: list[Path], lengths: dict[str, Node], problems: list[str]):
        self.tree, self.problems = tree, problems
        self.own: dict[str, Node] = {}
        shared = [*(_read(path, problems) for path in files), _read_default()]
        self.registry = Registry([self.own, *shared], lengths, problems)
        self.added: set[str] = set()
        self.unknown: dict[str, str] = {}

    def run(self) -> dict[str, str]:
        shared = {name for layer in self.registry.layers[1:] for name in layer}
        for kind in ("tasks", "mixtures"):
            for name, section in self._group(kind).items():
                section = expand_name(section)
                if isinstance(section.value, dict):  # else validation reports it
                    if "extends" not in section.value and name in shared and not _is_complete(section.value):
                        section = Node({"extends": Node(name, section.where), **section.value}, section.where)
                    self.own.setdefault(name, section)
                    if kind == "tasks" and not {"extends", "source"} & section.value.keys():
                        self.unknown[name] = self.registry.suggest(name, any_hint=False)  # a change of another name
        for name in list(self.own):
            self._add(name)
        stages = _mappings(self.tree.value.get("stages"))
        for stage in stages:
            if (data := stage.value.get("data")) is not None:
                if _extends(data):
                    path = f"stages.{_plain(stage.value.get('name'))}.data"
                    data = stage.value["data"] = self._find_inline(data, path).section
                self._add_all(data)
        for variant in _mappings(self.tree.value.get("compare")):
            for data in _named_data(variant):
                self._add_all(data)
        for stage in stages:
            evaluations = stage.value.get("evaluate")
            if evaluations is not None and isinstance(evaluations.value, list):
                made = [one for item in evaluations.value for one in self._evaluations(item, stage)]
                stage.value["evaluate"] = Node(made, evaluations.where)
        return self.unknown

    def _group(self, kind: str) -> dict[str, Node]:
        group = self.tree.value.get(kind)
        return group.value if group is not None and isinstance(group.value, dict) else {}

    def _add_all(self, data: Node) -> None:
        for name in _names(data):
            self._add(name)

    def _add(self, name: str) -> None:
        """Copy a section, and those that it names, to the configuration."""
        if name in self.added:
            return
        self.added.add(name)
        entry = self.registry.find(name)
        if entry is None:
            self.unknown[name] = self.registry.suggest(name)
            return
        kind, other = ("mixtures", "tasks") if entry.is_mixture else ("tasks", "mixtures")
        if name in self._group(other) and name not in self._group(kind):
            self.problems.append(f"{entry.section.where}: {other}.{name}: it extends one of the {kind}; write it there")
        elif name in self.own or name not in self._group(kind):
            group = self.tree.value.get(kind)
            if group is None or group.value is None:
                self.tree.value[kind] = Node({}, entry.section.where)
            self._group(kind)[name] = copy.deepcopy(entry.section)
            self._add_all(entry.section)

    def _find_inline(self, data: Node, path: str) -> Entry:
        """The section that data with `extends`, written where they are used, start from and change."""
        registry = Registry([{**self.own, path: data}, *self.registry.layers[1:]], self.registry.lengths, self.problems)
        entry = registry.find(path)
        assert entry is not None
        self.registry.lengths_used |= registry.lengths_used
        return Entry(copy.deepcopy(entry.section), entry.is_mixture, entry.validation)

    def _evaluations(self, item: Node, stage: Node) -> list[Node]:
        """An evaluation with the held-out data that it names; one for each task if it names a mixture."""
        data = item.value.get("data") if isinstance(item.value, dict) else None
        if data is None or not (isinstance(data.value, str) or _extends(data)):
            return [item]
        label = _plain(item.value.get("name")) or _plain(item.value.get("kind"))
        path = f"stages.{_plain(stage.value.get('name'))}.evaluate.{label}.data"
        if isinstance(data.value, dict):
            entry = self._find_inline(data, path)
            if not entry.is_mixture:
                return [self._evaluation(item, entry, path, "", has_split=_has_split(data))]
            members = entry.validation or Node([], data.where)
        else:
            members = Node([data], data.where)
        tasks = self._heldout_tasks(members, path)
        return [self._evaluation(item, found, path, name) for name, found in tasks.items()]

    def _heldout_tasks(self, members: Node, path: str, seen: frozenset[str] = frozenset()) -> dict[str, Entry]:
        """{name: entry} of the tasks that score data: those named, and of mixtures their `validation` or their tasks.

        seen: the mixtures around, which a mixture that contains itself would lead back to.
        """
        found: dict[str, Entry] = {}
        for member in _elements(members):
            entry = self.registry.find(member.value) if isinstance(member.value, str) else None
            if entry is None:
                shown, hint = _plain(member), self.registry.suggest(str(_plain(member)))
                self.problems.append(f"{member.where}: {path}: no task or mixture {shown!a:.80}{hint}")
            elif not entry.is_mixture:
                found[member.value] = entry
            elif member.value not in seen:
                names = [Node(name, member.where) for name in _names(entry.section)]
                below = entry.validation or Node(names, member.where)
                found |= self._heldout_tasks(below, path, seen | {member.value})
        return found

    def _evaluation(self, item: Node, entry: Entry, path: str, name: str, has_split: bool = False) -> Node:
        """The evaluation with the held-out data of a task, and with its name if it has none."""
        task = copy.deepcopy(entry.section)
        if entry.validation is not None and not has_split:
            change = Node({"source": entry.validation}, entry.validation.where)
            task = merge(task, change, self.problems, Task, path)
        elif not has_split and (sources := _mappings(task.value.get("source"))):
            if not _kinds(task) <= {"tfds", "huggingface"}:
                self.problems.append(
                    f"{item.value['data'].where}: {path}: which data of {name or 'the task'} are held out is not "
                    "known; write them here, or under `validation` of the task"
                )
            for source in sources:
                if str(_plain(source.value.get("split")) or "train").startswith("train"):
                    source.value["split"] = Node("validation", source.where)
        named = {} if "name" in item.value or not name else {"name": Node(name, item.where)}
        return Node({**item.value, **named, "data": task}, item.where)


def add_hints(problems: list[str], hints: dict[str, str]) -> list[str]:
    """Complete the lines about tasks that are not in the configuration, or have no source, with similar names."""
    for name, hint in hints.items():
        endings = (
            f"uses task '{name}', which is not under 'tasks:'",
            f": tasks.{name}.source: required key is missing",
        )
        problems = [line + hint if line.endswith(endings) else line for line in problems]
    return problems


def _plain(node: Node | None) -> Any:
    return None if node is None else to_plain(node)


def _text(node: Node | None) -> str | None:
    """The text of a node; None for anything else, which validation reports."""
    value = _plain(node)
    return value if isinstance(value, str) else None


def _mappings(node: Node | None) -> list[Node]:
    return [item for item in _elements(node) if isinstance(item.value, dict)]


def _extends(data: Node) -> bool:
    return isinstance(data.value, dict) and "extends" in data.value


def _kinds(task: Node) -> set[str | None]:
    return {_text(source.value.get("kind")) for source in _mappings(task.value.get("source"))}


def _fits(task: Node, base: Node) -> bool:
    """Whether what the base says about held-out data still holds: its sources are of the same kind, or name splits."""
    return _kinds(task) == _kinds(base) or (_kinds(task) | _kinds(base)) <= {"tfds", "huggingface"}


def _is_complete(section: dict[str, Node]) -> bool:
    """Whether an own section is more than changes of the one with its name in a registry."""
    if "mixture" in section:
        return not isinstance(section["mixture"], DottedOverride)
    source, preprocess = section.get("source"), section.get("preprocess")
    if source is None or preprocess is None:
        return False
    changes = isinstance(source.value, dict) and not {"kind", "files"} & source.value.keys()
    return not changes and not (isinstance(preprocess.value, dict) and "kind" not in preprocess.value)


def _has_split(data: Node) -> bool:
    source = data.value.get("source") if isinstance(data.value, dict) else None
    return any("split" in item.value or "files" in item.value for item in _mappings(source))


def _names(data: Node) -> list[str]:
    """The name that a stage's data are, or the members of a mixture."""
    if isinstance(data.value, str):
        return [data.value]
    members = data.value.get("mixture") if isinstance(data.value, dict) else None
    if members is None or not isinstance(members.value, list | dict):
        return []
    found = members.value if isinstance(members.value, dict) else [item.value for item in members.value]
    return [name for name in found if isinstance(name, str)]


def _named_data(node: Node, key: str = "") -> Iterator[Node]:
    """The values of all keys `data` below a variant of `compare`."""
    if key.rsplit(".", 1)[-1] == "data":
        yield node
    elif isinstance(node.value, dict):
        for below, item in node.value.items():
            yield from _named_data(item, below)
