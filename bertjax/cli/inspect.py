"""Commands that look at a configuration or a checkpoint (`inspect`, `plan`) or convert it (`import`, `export`)."""

import argparse
from pathlib import Path

from bertjax.cli import arguments as cli
from bertjax.errors import UserError
from bertjax.progress import reporter


@cli.command(
    "inspect",
    "show the model, sizes and costs, and what trains at a given step",
    cli.option("target", metavar="CONFIG|MODEL", help="a YAML file, a run, a checkpoint or a pretrained model"),
    cli.STEP,
    cli.JSON,
    examples=(
        "bertjax inspect bert/pretrain_base",
        "bertjax inspect demo --step 3000",
        "bertjax inspect runs/demo --json",
    ),
    note="runs/demo is a run of `bertjax demo`",
    overrides=True,
)
def inspect(arguments: argparse.Namespace) -> int:
    target = cli.config_or_model(arguments.target)
    if isinstance(target, Path) and target.is_file():  # reports an invalid configuration before jax is imported
        arguments.config = target
        cli.load_config(arguments)
    cli.require_device(arguments)
    from bertjax.tools.inspect import inspect_command

    return cli.print_result(inspect_command(target, arguments.overrides, arguments.step, arguments.json))


@cli.command(
    "plan",
    "compile for devices that are not attached: memory fit, communication volume, roofline speed",
    cli.CONFIG,
    cli.option("--topology", metavar="T", required=True, help="v5e:16x16, v5p-128, h200:2x8 (hosts x GPUs), cpu:8"),
    cli.option("--stage", metavar="NAME", help="plan only this stage (default: all; with --sweep the first)"),
    cli.option("--episode", metavar="N", type=cli.non_negative_int, help="episode of `gradual` (default: the last)"),
    cli.option("--sweep", action="store_true", help="try other meshes, batch sizes and remat policies, and rank them"),
    cli.option("--limit", metavar="N", type=cli.positive_int, help="most compilations of --sweep (default: 24)"),
    cli.JSON,
    examples=(
        "bertjax plan debug/cpu --topology cpu:8 mesh.fsdp=8",
        "bertjax plan bert/pretrain_large --topology v5e:16x16 mesh.fsdp=16",
        "bertjax plan t5/pretrain_3b --topology v5p:4x4x4 --json",
        "bertjax plan t5/pretrain_large --topology h200:8 --sweep --limit 12",
    ),
    note="TPUs: pip install libtpu; GPUs: pip install 'jax[cuda13]'",
    overrides=True,
)
def plan(arguments: argparse.Namespace) -> int:
    config = cli.load_config(arguments)
    from bertjax.plan.subprocess_runner import plan_command

    return plan_command(config, arguments)


@cli.command(
    "import",
    "convert a model of Hugging Face, T5X or google-research to a bertjax checkpoint",
    cli.option("source", metavar="MODEL", help="a Hugging Face folder, a model on the Hub, a T5X or TF1 checkpoint"),
    cli.option("out", metavar="OUT"),
    cli.option(
        "--tokenizer", metavar="FILE", help="the SentencePiece model of a T5 checkpoint that has none beside it"
    ),
    examples=(
        "bertjax import hf/demo runs/imported",
        "bertjax import google-bert/bert-base-uncased runs/bert-base",
    ),
    note="hf/demo is written by `bertjax export runs/demo hf/demo`, runs/demo by `bertjax demo`",
)
def import_folder(arguments: argparse.Namespace) -> int:
    out, source = cli.new_dir(arguments.out), cli.pretrained_model(arguments.source)
    cli.require_device(arguments)
    from bertjax.tools import convert_hf

    tokenizer = None if arguments.tokenizer is None else cli.existing_path(arguments.tokenizer)
    for line in convert_hf.import_folder(source, out, tokenizer):
        reporter.say(f"note: {line}")
    return cli.print_result(str(out))


@cli.command(
    "export",
    "convert a bertjax checkpoint to a Hugging Face folder, and upload it to the Hub",
    cli.MODEL,
    cli.option("out", metavar="OUT", nargs="?", help="the folder to write; with --push it may be left out"),
    cli.option("--adapter", action="store_true", help="write only LoRA and the head, as a folder of the peft library"),
    cli.option("--push", metavar="NAME", help="upload it to the Hugging Face Hub as NAME, such as org/model"),
    cli.option("--private", action="store_true", help="with --push: make the model private if it is new"),
    cli.option("--revision", metavar="BRANCH", help="with --push: the branch to upload to (default: main)"),
    cli.option("--create-pr", action="store_true", help="with --push: open a pull request instead of a commit"),
    cli.option("--license", metavar="ID", help="licence for the model card, such as apache-2.0"),
    cli.option("--head", metavar="NAME", help="write only this head, such as `generator` of replaced-token detection"),
    cli.BEST,
    cli.BASE,
    examples=("bertjax export runs/demo hf/demo", "bertjax export runs/demo --push my-org/demo --private"),
    note="runs/demo is a run of `bertjax demo`; --push needs a login (`hf auth login`, or HF_TOKEN)",
)
def export(arguments: argparse.Namespace) -> int:
    if arguments.out is None and arguments.push is None:
        raise UserError("OUT: name the folder to write, or a model on the Hub with --push NAME")
    if arguments.adapter and arguments.push is not None:
        raise UserError("--adapter writes a folder: leave out --push")
    if arguments.adapter and arguments.base is not None:
        raise UserError("--adapter leaves the base out: leave out --base")
    if arguments.adapter and arguments.head is not None:
        raise UserError("--adapter writes the head of the stage: leave out --head")
    _check_push_options(arguments)
    out = None if arguments.out is None else cli.new_dir(arguments.out)
    source = cli.pretrained_model(arguments.checkpoint)
    cli.require_device(arguments)
    to = None
    if arguments.push is not None:
        from bertjax.storage import hub_upload

        to = hub_upload.check(
            arguments.push, revision=arguments.revision, private=arguments.private or None,
            create_pr=arguments.create_pr,
        )  # fmt: skip
    from bertjax.tools import convert_hf
    from bertjax.training.untrained_heads import format_modules

    if arguments.adapter and out is not None:
        from bertjax.tools.export_adapter import export_adapter

        export_adapter(source, out, arguments.best)
        return cli.print_result(str(out))
    base = None if arguments.base is None else cli.pretrained_model(arguments.base)
    options = {"license": arguments.license, "best": arguments.best, "base": base, "head": arguments.head}
    if to is not None:
        result, left_out = convert_hf.push_checkpoint(source, out, to, **options)
    elif out is not None:
        result, left_out = str(out), convert_hf.export_checkpoint(source, out, **options)
    if left_out:
        reporter.say(f"note: not exported, the Hugging Face class lacks them: {format_modules(left_out)}")
    return cli.print_result(result)


def _check_push_options(arguments: argparse.Namespace) -> None:
    given = {"--private": arguments.private, "--revision": arguments.revision, "--create-pr": arguments.create_pr}
    if arguments.push is None and (name := next((name for name, value in given.items() if value), None)):
        raise UserError(f"{name} is for --push NAME; give both, or leave it out")


@cli.command(
    "quantize",
    "write a model with 8-bit integer weights, and compare its size and scores",
    cli.MODEL,
    cli.option("out", metavar="OUT", help="the folder to write, which the other commands take as a model"),
    cli.option("--no-evaluate", action="store_true", help="do not score the model before and after"),
    cli.BEST,
    cli.DEVICE,
    cli.JSON,
    examples=("bertjax quantize runs/demo small/demo", "bertjax quantize runs/demo small/demo2 --no-evaluate --json"),
    note="runs/demo is a run of `bertjax demo`",
)
def quantize(arguments: argparse.Namespace) -> int:
    out, source = cli.new_dir(arguments.out), cli.pretrained_model(arguments.checkpoint)
    cli.require_device(arguments)
    from bertjax.tools.quantize import quantize_command, quantize_table

    found = quantize_command(source, out, best=arguments.best, evaluate=not arguments.no_evaluate)
    return cli.print_result(found if arguments.json else quantize_table(found))
