"""What the user asked `bertjax init` for, and the training and held-out data that follow from it."""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertjax.config.loading.pretrained import read_model_fields
from bertjax.config.schema.model import FAMILIES
from bertjax.data.sources.hub import huggingface_records
from bertjax.errors import UserError
from bertjax.storage.pretrained import hub_name
from bertjax.storage.remote import is_remote
from bertjax.tools.init import heldout
from bertjax.tools.init.recipe import Machine
from bertjax.tools.init.source import Data, make_data, open_files
from bertjax.tools.init.write import Recipe

BASE = Path()  # names in a configuration start at the current folder
EVALUATION_SPLITS = ("validation", "dev", "valid", "test")


@dataclass(frozen=True)
class Request:
    """The arguments of the command.

    Attributes:
        files: files or globs; or
        data_set: a Hugging Face data set as NAME or NAME:CONFIG, with `split`.
        evaluation: a held-out file or split, `none`, or None: split a part off.
        text, pair, label: columns, or None: find them.
        fields: names of the columns of a table without a header.
        pretrained: weights to start from; None: random ones.
    """

    kind: str
    output: Path
    device: str
    files: tuple[str, ...] = ()
    data_set: str | None = None
    split: str = "train"
    evaluation: str | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    fields: tuple[str, ...] | None = None
    pretrained: str | None = None
    force: bool = False

    @property
    def name(self) -> str:
        """The name of the run: that of the file."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.output.stem).strip("-._")[:64]
        return name or self.kind

    @property
    def run_dir(self) -> str:
        return f"runs/{self.name}"

    @property
    def quoted_output(self) -> str:
        return shlex.quote(str(self.output))

    @property
    def device_name(self) -> str:
        return {"cpu": "a CPU", "gpu": "a GPU", "tpu": "a TPU"}[self.device]

    @property
    def machine(self) -> Machine:
        fields = self.model_fields()
        longest = fields.get("max_position_embeddings", 512) - (fields.get("pad_token_id", -1) + 1)
        return Machine(self.device, self.pretrained, longest)

    @property
    def is_local(self) -> bool:
        """Whether `pretrained` is a folder here rather than a name on the Hub."""
        return bool(self.pretrained) and Path(str(self.pretrained)).expanduser().exists()

    def model_fields(self) -> dict[str, Any]:
        """Family and sizes of a local pretrained model; nothing for a name on the Hub. Raises UserError."""
        name = self.pretrained
        if name is None:
            return {}
        if not self.is_local:
            if name.startswith("runs/") or (hub_name(name, BASE) is None and not is_remote(name)):
                shown = name or "(empty)"
                raise UserError(
                    f"--pretrained: {shown}: no such folder; name a model on the Hub, a folder, a run, or none"
                )
            return {}
        fields = read_model_fields(Path(name).expanduser())
        kind = "sentencepiece" if self.kind == "t5" else "wordpiece"  # T5, or an encoder
        fits = [family for family, section in FAMILIES.items() if section.tokenizer == kind]
        if fields["family"] not in fits:
            raise UserError(
                f"--pretrained: {name} is a {fields['family']} model; {self.kind} needs {' or '.join(fits)}"
            )
        return fields

    def part_names(self, suffix: str) -> heldout.Parts:
        """The files beside the configuration for training and for evaluation."""
        stem = self.output.with_suffix("")
        return stem.with_name(f"{stem.name}-train{suffix}"), stem.with_name(f"{stem.name}-heldout{suffix}")

    def open(self) -> Data:
        """The training data. Raises UserError."""
        if self.data_set is None:
            return open_files(
                self.files, BASE, self.fields, in_columns=self.kind == "tag", tables=self.kind != "pretrain"
            )
        name, _, config = self.data_set.partition(":")
        keys = {"kind": "huggingface", "name": name} | ({"config": config} if config else {}) | {"split": self.split}
        return make_data(keys, 0)

    def open_evaluation(self, data: Data) -> Data | None:
        """The held-out data that the user names, or a data set has; None if there are none. Raises UserError."""
        if self.evaluation in (None, "none"):
            return self._evaluation_split(data) if self.evaluation is None and self.data_set else None
        if self.data_set is not None:
            found = data.replace(split=self.evaluation)
            next(huggingface_records(found.section, BASE), None)
            return found
        return open_files(
            [str(self.evaluation)], BASE, self.fields, in_columns=self.kind == "tag", tables=self.kind != "pretrain"
        )

    def _evaluation_split(self, data: Data) -> Data | None:
        for split in EVALUATION_SPLITS:
            try:
                found = data.replace(split=split)
                if split != self.split and next(huggingface_records(found.section, BASE), None) is not None:
                    return found
            except UserError:
                continue
        return None


@dataclass(frozen=True)
class Sides:
    """Training and held-out data: options of their sources, and what writes their files (-> examples in each)."""

    train: dict[str, Any]
    heldout: dict[str, Any] | None
    write: Callable[[], tuple[int, int]] | None = None
    unit: str = "records"

    @property
    def files(self) -> list[Path]:
        """The files that `write` makes."""
        return [Path(side["files"][0]) for side in (self.train, self.heldout) if side] if self.write else []


@dataclass(frozen=True)
class Result:
    """A recipe, the data it needs and lines about what was found."""

    recipe: Recipe
    sides: Sides
    found: list[str]


def given_sides(request: Request, data: Data) -> Sides | None:
    """Sides that need no new files: the user's own, a whole file of several, or no evaluation; else None."""
    if (evaluation := request.open_evaluation(data)) is not None:
        return Sides(data.keys, evaluation.keys)
    if request.evaluation == "none":
        return Sides(data.keys, None)
    if data.size > heldout.MAX_BYTES and "split" in type(data.section).model_fields:  # too much to copy
        return Sides(data.keys | {"split": "[:95%]"}, data.keys | {"split": "[95%:]"})
    heldout.check_size(data)
    return None


def record_sides(
    request: Request, data: Data, read: Callable[[], Iterator[tuple[dict[str, Any], str, str]]], **keys: Any
) -> Sides:
    """Sides of records, split by a text if need be. `read` yields (record, text, label).

    `keys`: options of the sources.
    """
    if found := given_sides(request, data):
        evaluation = None if found.heldout is None else found.heldout | keys
        return Sides(found.train | keys, evaluation)
    held = heldout.choose_heldout(((text, label) for _, text, label in read()), 0.1, 2000, "records")
    parts = request.part_names(".jsonl")
    train, evaluation = ({"kind": "jsonl", "files": [str(part)]} | keys for part in parts)
    return Sides(
        train,
        evaluation,
        lambda: heldout.split_records(((record, text) for record, text, _ in read()), held, parts),
    )


def evaluations(kind: str, sides: Sides, preprocess: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The key `evaluate` of a stage, or nothing without held-out data."""
    if sides.heldout is None:
        return {}
    data = {"source": sides.heldout, "preprocess": preprocess}
    return {"evaluate": [{"kind": kind, "name": "heldout", **options, "data": data}]}
