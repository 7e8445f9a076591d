"""Model cards: the README.md of an exported model, with its data, scores, configuration and commands."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from bertjax.config.loading import yaml_reader
from bertjax.config.schema.run import Config, Stage
from bertjax.config.schema.sources import HuggingFaceData, TfdsData
from bertjax.config.schema.training import SentenceEmbeddingObjective
from bertjax.data.sources.registry import describe_source
from bertjax.storage.hub_upload import CARD_MARK
from bertjax.storage.pretrained import hub_name

# The head that a class of transformers is written for -> (pipeline of the Hub, class, a line that uses it, a command).
_USES = {
    "qa": (
        "question-answering",
        "AutoModelForQuestionAnswering",
        'bertjax predict answer {name} --question "..." --context "..."',
    ),
    "classifier": (
        "text-classification",
        "AutoModelForSequenceClassification",
        'bertjax predict classify {name} "..."',
    ),
    "token_classifier": ("token-classification", "AutoModelForTokenClassification", 'bertjax predict tag {name} "..."'),
    "mlm": ("fill-mask", "AutoModelForMaskedLM", 'bertjax predict fill-mask {name} "... {mask} ..."'),
    "lm": ("text2text-generation", "AutoModelForSeq2SeqLM", 'bertjax predict generate {name} "..."'),
}
_SENTENCES = ("sentence-similarity", "SentenceTransformer", 'bertjax predict embed {name} "..." "..."')
_BARE = ("feature-extraction", "AutoModel", "bertjax predict embed {name} --file texts.txt --output vectors.npy")
_ADDRESS = re.compile(r"[a-z0-9]+://")
_LOCAL = ("/", "~", ".")


def model_card(
    config: Config, stage: int, step: int, *, name: str, heads: Sequence[str], params: int,
    scores: Mapping[str, float], labels: Sequence[str] | None, versions: Mapping[str, str], mask: str = "[MASK]",
    license: str | None = None,
) -> str:  # fmt: skip
    """The README.md of the checkpoint `step` of a stage, with the Hub's metadata.

    name: of the model on the Hub, or its folder. scores: {"dev/f1": 88.1} at this step. Folders in paths of the
    configuration are left out, as they are of the machine that trained the model.
    """
    from huggingface_hub import EvalResult, ModelCardData

    one = config.stages[stage]
    sentences = isinstance(one.objective, SentenceEmbeddingObjective)
    bare = _SENTENCES if sentences else _BARE
    pipeline, auto, command = next((_USES[head] for head in _USES if head in heads), bare)
    results = [
        EvalResult(
            task_type=pipeline, dataset_type=evaluation, dataset_name=_evaluation_data(one, evaluation),
            metric_type=metric, metric_name=f"{evaluation}/{metric}", metric_value=round(float(value), 6),
        )
        for (evaluation, metric), value in _by_evaluation(scores)
    ]  # fmt: skip
    base = _base_model(config, one)
    data = ModelCardData(
        model_name=name.rsplit("/", 1)[-1], eval_results=results or None,
        library_name="sentence-transformers" if sentences else "transformers",
        pipeline_tag=pipeline, tags=["bertjax", "jax", config.model.family], license=license, base_model=base,
        datasets=_hub_datasets(config) or None,
    )  # fmt: skip
    lines = ["---", data.to_yaml().strip(), "---", CARD_MARK, "", f"# {name.rsplit('/', 1)[-1]}", ""]
    lines += [_first_paragraph(config, one, step, heads, params, base), ""]
    if labels:
        lines += [f"Labels: {', '.join(f'`{label}`' for label in labels)}.", ""]
    lines += ["## Scores", "", *_score_table(one, scores, step), "", "## Data", "", *_data_lines(config, one), ""]
    use = command.replace("{name}", name).replace("{mask}", mask)
    lines += ["## Use", "", "```python", *_python(name, auto), "```", "", "```shell", use, "```", ""]
    lines += ["## Training", "", "```shell", "pip install bertjax", "bertjax train config.yaml", "```", ""]
    lines += [f"with {_versions(versions)} and this `config.yaml` (folders of local files are left out):", ""]
    return "\n".join([*lines, "```yaml", yaml_reader.dump(public_fields(config)).strip(), "```", ""])


def public_fields(config: Config) -> dict[str, Any]:
    """The options that decide what is learned, without the folders of this machine."""
    data = config.model_dump(mode="json", include={"pretrained", "model", "tokenizer", "tasks", "mixtures", "stages"})
    data = {key: value for key, value in data.items() if value not in (None, {}, [])}
    return {**_without_folders(data), "run": {"seed": config.run.seed}}


def _without_folders(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    if isinstance(value, str) and (value.startswith(("/", "~/", "../")) or _ADDRESS.match(value)):
        return PurePosixPath(value.rstrip("/")).name
    return value


def _base_model(config: Config, stage: Stage) -> str | None:
    """The model on the Hub that training started from, without its revision."""
    for name in (config.pretrained, getattr(stage, "init_from", None), config.stages[0].init_from):
        if isinstance(name, str) and "/" in name and not name.startswith(_LOCAL) and (found := hub_name(name)):
            return found[0]
    return None


def _hub_datasets(config: Config) -> list[str]:
    found = [
        source.name
        for stage in config.stages
        for task in config.stage_tasks(stage).values()
        for source in task.source
        if isinstance(source, HuggingFaceData) and not source.name.startswith(_LOCAL)
    ]
    return list(dict.fromkeys(found))


def _by_evaluation(scores: Mapping[str, float]) -> list[tuple[tuple[str, str], float]]:
    """{"dev/f1": 88.1} -> [(("dev", "f1"), 88.1)], finite numbers only."""
    found = [((name.rpartition("/")[0], name.rpartition("/")[2]), value) for name, value in scores.items()]
    return [(key, value) for key, value in found if isinstance(value, int | float) and abs(value) < float("inf")]


def _evaluation_data(stage: Stage, name: str) -> str:
    data = next((each.data for each in stage.evaluate if each.name == name), None)
    return name if data is None else ", ".join(_source(source) for source in data.source)


def _source(source: Any) -> str:
    """A source without its folders."""
    if isinstance(source, HuggingFaceData | TfdsData):
        config = getattr(source, "config", None)
        return f"{_without_folders(source.name)}{f' ({config})' if config else ''}, split {source.split}"
    files = getattr(source, "files", None)
    names = ", ".join(PurePosixPath(name).name for name in files) if files else describe_source(source)
    split = getattr(source, "split", None) if files else None
    return f"{names}{f' {split}' if split else ''}"


def _first_paragraph(
    config: Config, stage: Stage, step: int, heads: Sequence[str], params: int, base: str | None
) -> str:
    model = config.model
    layers = f"{model.num_hidden_layers} layers, {params:,} parameters"
    named = (config.pretrained, config.stages[0].init_from, stage.init_from)
    given = next((str(x) for x in named if x and x not in ("previous", "best", "scratch")), "other weights")
    start = (
        f"starting from [{base}](https://huggingface.co/{base})"
        if base
        else f"starting from `{_without_folders(given)}`"
    )
    if config.pretrained is None and all(each.init_from in (None, "scratch") for each in config.stages[:1]):
        start = "starting from random weights"
    trained = {
        "all": "all parameters",
        "head": "the head only",
        "features": "the head only, on fixed features",
        "gradual": "gradual unfreezing",
    }
    how = trained.get(stage.trainable.kind, stage.trainable.kind)
    return (
        f"{'DistilBERT' if model.family == 'distilbert' else model.family.upper()} ({layers}; heads: "
        f"{', '.join(heads) or 'none'}), trained with bertjax: stage `{stage.name}`, step {step:,}, objective "
        f"`{stage.objective.kind}`, {how}, {start}."
    )


def _score_table(stage: Stage, scores: Mapping[str, float], step: int) -> list[str]:
    found = _by_evaluation(scores)
    if not found:
        return [f"Step {step:,} was not evaluated."]
    rows = [
        f"| {evaluation} | {_evaluation_data(stage, evaluation)} | {metric} | {value:.6g} |"
        for (evaluation, metric), value in found
    ]
    return ["| evaluation | data | score | value |", "|---|---|---|---:|", *rows]


def _data_lines(config: Config, stage: Stage) -> list[str]:
    return [
        f"- `{name}` ({task.preprocess.kind}{f', limit {task.limit:,}' if task.limit else ''}): "
        + "; ".join(_source(source) for source in task.source)
        for name, task in config.stage_tasks(stage).items()
    ]


def _python(name: str, auto: str) -> list[str]:
    if auto == "SentenceTransformer":
        return [f"from sentence_transformers import {auto}", "", f'model = {auto}("{name}")']
    return [
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'model = {auto}.from_pretrained("{name}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
    ]


def _versions(versions: Mapping[str, str]) -> str:
    wanted = ("bertjax", "jax", "flax")
    return ", ".join(f"{name} {versions[name]}" for name in wanted if name in versions) or "bertjax"
