"""Commands to start with: `demo`, `configs`, `tasks`, `init`, `schema` and `completion`."""

import argparse
import sys
from pathlib import Path

from bertjax.cli import arguments as cli
from bertjax.errors import UserError
from bertjax.storage.locations import local_path


@cli.command(
    "demo",
    "train, score and report on built-in text with a small BERT and a small T5 (a few minutes on two CPU cores)",
    cli.option("--root", metavar="DIR", default="runs", help="folder of the runs (default: runs)"),
    cli.DEVICE,
    examples=("bertjax demo", "bertjax demo --root /tmp/trial"),
)
def demo(arguments: argparse.Namespace) -> int:
    root = local_path(arguments.root)
    if root.exists() and not root.is_dir():
        raise UserError(f"--root: {arguments.root}: is a file; name a folder")
    cli.select_platform(arguments)
    from bertjax.demo import run_demo

    return run_demo(root)


@cli.command(
    "configs",
    "list the shipped configurations, or print one",
    cli.option("name", metavar="[NAME]", nargs="?", help="a configuration to print, or a group such as `bert`"),
    cli.JSON,
    examples=(
        "bertjax configs",
        "bertjax configs finetune",
        "bertjax configs bert/pretrain_base",
        "bertjax configs bert/pretrain_base > my.yaml",
    ),
)
def configs(arguments: argparse.Namespace) -> int:
    from bertjax.config.loading.shipped import shipped_configs, suggest_shipped, summary

    found, name = shipped_configs(), arguments.name
    if name in found:
        text = found[name].read_text(encoding="utf-8")
        facts = {"name": name, "path": str(found[name]), "summary": summary(found[name]), "text": text}
        return cli.print_result(facts if arguments.json else text.rstrip("\n"))
    if name is not None:
        found = {each: path for each, path in found.items() if each.startswith(name.rstrip("/") + "/")}
    if not found:
        raise UserError(f"{name[:200]!a}: no shipped configuration{suggest_shipped(name)}")
    if arguments.json:
        listed = [{"name": each, "path": str(path), "summary": summary(path)} for each, path in found.items()]
        return cli.print_result(listed)
    width = max(map(len, found)) + 2
    return cli.print_result("\n".join(f"{each:<{width}}{summary(path)}" for each, path in found.items()))


@cli.command(
    "tasks",
    "list the named tasks and mixtures that a configuration can use (`data: NAME`), or print one",
    cli.option("task", metavar="[NAME]", nargs="?", help="a task or mixture to print, or how its name begins"),
    cli.option("--registry", metavar="FILE", action="append", default=[], help="a registry file, or huggingface: the "
               "tasks from the Hub; may be given more than once"),
    cli.JSON,
    examples=("bertjax tasks", "bertjax tasks super_glue", "bertjax tasks glue_mnli_v002 --registry huggingface"),
)  # fmt: skip
def tasks(arguments: argparse.Namespace) -> int:
    from bertjax.config.loading import named_tasks, yaml_reader

    paths = []
    for given in arguments.registry:
        path = named_tasks.registry_path(given, Path())
        paths.append(cli.existing_path(given) if path is None else path)
    registry, name = named_tasks.shipped_registry(paths), arguments.task
    if name in registry.names():
        section = registry.describe(name)
        return cli.print_result(section if arguments.json else yaml_reader.dump(section).rstrip("\n"))
    names = [each for each in registry.names() if each.startswith(name or "")]
    if not names:
        raise UserError(f"{name[:200]!a}: no task or mixture{registry.suggest(name)}")
    summaries = {each: registry.summary(each) for each in names}
    if arguments.json:
        return cli.print_result([{"name": each, "summary": text} for each, text in summaries.items()])
    width = max(map(len, names)) + 2
    return cli.print_result("\n".join(f"{each:<{width}}{text}" for each, text in summaries.items()))


@cli.command(
    "schema",
    "print the JSON schema of configuration files, with which editors complete and check YAML",
    cli.OUTPUT,
    examples=("bertjax schema --output bertjax.schema.json",),
)
def schema(arguments: argparse.Namespace) -> int:
    output = cli.output_path(arguments.output)
    from bertjax.config.json_schema import json_schema

    if output is None:
        return cli.print_result(json_schema())
    from bertjax.storage.atomic import write_json_atomic

    write_json_atomic(output, json_schema(), indent=1)
    print(f"first line of your YAML: # yaml-language-server: $schema={output.name}", file=sys.stderr)
    return 0


@cli.command(
    "init",
    "write a configuration that trains on your own files",
    cli.option(
        "kind",
        metavar="KIND",
        choices=("classify", "tag", "qa", "pretrain", "t5"),
        help="classify, tag (entities, parts of speech), qa, pretrain or t5",
    ),
    cli.option(
        "files", metavar="[FILE ...]", nargs="*", help="CSV, TSV, JSON, JSON lines, Parquet, CoNLL, SQuAD or text files"
    ),
    cli.option("--data", metavar="NAME", help="a Hugging Face data set instead of files: NAME or NAME:CONFIG"),
    cli.option("--split", metavar="S", default="train", help="split of --data to train on (default: train)"),
    cli.option(
        "--eval", metavar="FILE", help="held-out file (or split of --data), or none (default: split off a part)"
    ),
    cli.option("--text", metavar="COLUMN", help="column of the text, or of the inputs of a T5"),
    cli.option("--pair", metavar="COLUMN", help="column of the second text of a pair"),
    cli.option(
        "--label",
        "--target",
        metavar="COLUMN",
        help="column of the label (a,b,c: of 0 and 1 for each label), or of the targets of a T5",
    ),
    cli.option("--fields", metavar="A,B,...", help="names of the columns of a CSV or TSV file without a header"),
    cli.option(
        "--pretrained",
        metavar="X",
        help="weights to start from: a name on the Hugging Face Hub, a folder or a run; none: a small model from "
        "random weights (default: google-bert/bert-base-uncased, for t5 google-t5/t5-small, for pretrain none)",
    ),
    cli.option("--output", metavar="FILE", help="the YAML file to write (default: KIND.yaml)"),
    cli.option("--force", action="store_true", help="overwrite files"),
    cli.option("--device", choices=("cpu", "gpu", "tpu"), help="where it will be trained (default: what is here)"),
    examples=(
        "bertjax init classify reviews.csv",
        "bertjax init classify pairs.tsv --text question --pair sentence --label same --eval dev.tsv",
        "bertjax init tag train.conll --eval dev.conll",
        "bertjax init qa train-v1.1.json --eval dev-v1.1.json --output squad.yaml",
        "bertjax init pretrain 'texts/*.txt' --device gpu",
        "bertjax init t5 articles.jsonl --text article --target summary --pretrained none",
    ),
    note="the files are yours",
)
def init(arguments: argparse.Namespace) -> int:
    if bool(arguments.files) == (arguments.data is not None):
        raise UserError("bertjax init: name either files or a data set with --data")
    if arguments.fields and arguments.data:
        raise UserError("bertjax init: --fields is for files without a header, not for --data")
    kind, pretrained = arguments.kind, arguments.pretrained
    output = cli.output_path(arguments.output or f"{kind}.yaml") or Path(f"{kind}.yaml")
    if output.suffix not in (".yaml", ".yml"):
        raise UserError(f"--output: {str(output)!a}: must end in .yaml")
    from bertjax.tools.init.command import init_command
    from bertjax.tools.init.recipe import find_device
    from bertjax.tools.init.request import Request

    default = {"pretrain": None, "t5": "google-t5/t5-small"}.get(kind, "google-bert/bert-base-uncased")
    request = Request(
        kind=kind,
        output=output,
        device=arguments.device or find_device(),
        files=tuple(arguments.files),
        data_set=arguments.data,
        split=arguments.split,
        evaluation=arguments.eval,
        text=arguments.text,
        pair=arguments.pair,
        label=arguments.label,
        fields=tuple(arguments.fields.split(",")) if arguments.fields else None,
        pretrained=default if pretrained is None else None if pretrained == "none" else pretrained,
        force=arguments.force,
    )
    return cli.print_result("\n".join(init_command(request)))
