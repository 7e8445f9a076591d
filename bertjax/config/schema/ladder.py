"""Configuration section of `bertjax ladder`: kinds of models pre-trained on one corpus and scored on the same tasks."""

import re
from operator import not_
from typing import Annotated, Any

from pydantic import Field, model_validator

from bertjax.config.schema.base import (
    Limit,
    LocalPath,
    Name,
    Section,
    Seed,
)

Overrides = dict[str, Any]


class Rung(Section):
    """A kind of model. Without overrides it is the configuration as it is written."""

    name: Name = Field(description="Name of the rung in the table and in the names of its runs.")
    about: str | None = Field(None, description="A sentence on what it adds. Default: by model family and objective.")
    overrides: Overrides = Field(
        {},
        description="What differs: keys of the first stage such as `objective` or `data.preprocess`, and of the "
        "configuration such as `model` or `tokenizer.extra_ids`.",
    )
    tasks: Overrides = Field({}, description="What differs when it is fine-tuned: keys of a later stage.")
    frozen: Overrides | None = Field(
        {}, description="What differs when its weights are frozen: keys of a later stage. null: no frozen runs."
    )
    text_to_text: bool = Field(
        False, description="Turn the tasks into text: inputs `TASK: text`, targets the names of the labels."
    )


class MinimalPairs(Section):
    """Pairs of sentences of which one is acceptable, as BLiMP's (arXiv 1912.00582)."""

    files: Annotated[list[str], Field(min_length=1)] = Field(
        description="Records with sentence_good, sentence_bad, UID and linguistics_term."
    )
    limit: Limit | None = Field(None, description="Pairs of each paradigm (UID), the first ones. Default: all.")


class Ladder(Section):
    """The rungs, what they are scored on, and the seeds of their runs."""

    rungs: Annotated[list[Rung], Field(min_length=1)] = Field(description="Kinds of models, in order.")
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field([1, 2, 3], description="Seeds, `run.seed`.")
    frozen: Overrides = Field(
        {},
        description="Keys of a later stage for the runs with frozen weights, whose `trainable` is `head` by default: "
        "`trainable: {kind: features, feature_layers: weighted}` or another learning rate.",
    )
    minimal_pairs: MinimalPairs | None = Field(None, description="Minimal pairs to score. Default: none.")
    analogies: LocalPath | None = Field(
        None,
        description="Word analogies: lines of four words, with `: section` headings as in questions-words.txt. "
        "Default: a built-in set.",
    )
    words: list[str] = Field([], exclude_if=not_, description="Words whose neighbours are shown. Default: a few.")

    @model_validator(mode="after")
    def _check(self) -> "Ladder":
        names = [rung.name for rung in self.rungs]
        if len(set(names)) < len(names) or "tokenizer" in names:
            raise ValueError("rungs need different names other than 'tokenizer'")
        if unclear := [name for name in names if re.search(r"-s\d+(-|$)", name)]:
            raise ValueError(f"rung {unclear[0]!r}: '-s' and a number in a name stand for a seed in the names of runs")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must differ")
        return self
