"""Commands that look at a configuration or a checkpoint (`inspect`, `plan`) or convert it (`import`, `export`)."""

import argparse
import sys

from bertjax.cli.arguments import (
    CHECKPOINT,
    CONFIG,
    JSON,
    STEP,
    command,
    existing_path,
    new_dir,
    non_negative_int,
    option,
    positive_int,
)
from bertjax.cli.startup import load_config, print_result, require_device


@command(
    "inspect",
    "show the model, sizes and costs, and what trains at a given step",
    option("target", metavar="CONFIG|CHECKPOINT", help="a YAML file, a run folder or a checkpoint"),
    STEP,
    JSON,
    examples=("bertjax inspect configs/bert/pretrain_base.yaml", "bertjax inspect my.yaml --step 500"),
    overrides=True,
)
def inspect(arguments: argparse.Namespace) -> int:
    target = existing_path(arguments.target)
    if target.is_file():  # reports an invalid configuration before jax is imported
        arguments.config = arguments.target
        load_config(arguments)
    require_device(arguments)
    from bertjax.tools.inspect import inspect_command

    return print_result(inspect_command(target, arguments.overrides, arguments.step, arguments.json))


@command(
    "plan",
    "compile for devices that are not attached: memory fit, communication volume, roofline speed",
    CONFIG,
    option("--topology", metavar="T", required=True, help="v5e:16x16, v5p-128, h200:2x8 (hosts x GPUs), cpu:8"),
    option("--stage", metavar="NAME", help="plan only this stage (default: all; with --sweep the first)"),
    option(
        "--episode",
        metavar="N",
        type=non_negative_int,
        help="episode of gradual unfreezing, from 0 (default: the last)",
    ),
    option("--sweep", action="store_true", help="try other meshes, batch sizes and remat policies, and rank them"),
    option("--limit", metavar="N", type=positive_int, help="maximum number of compilations of --sweep (default: 24)"),
    JSON,
    examples=(
        "bertjax plan configs/bert/pretrain_large.yaml --topology v5e:16x16 mesh.fsdp=16",
        "bertjax plan configs/t5/pretrain_3b.yaml --topology v5p:4x4x4 --json",
        "bertjax plan configs/t5/pretrain_large.yaml --topology h200:8 --sweep --limit 12",
    ),
    overrides=True,
)
def plan(arguments: argparse.Namespace) -> int:
    config = load_config(arguments)
    from bertjax.plan.subprocess_runner import plan_command

    return plan_command(config, arguments)


@command(
    "import",
    "convert a Hugging Face folder to a bertjax checkpoint",
    option("source", metavar="HF_FOLDER"),
    option("out", metavar="OUT"),
    examples=("bertjax import bert-base-uncased/ checkpoints/bert-base",),
)
def import_folder(arguments: argparse.Namespace) -> int:
    source, out = existing_path(arguments.source), new_dir(arguments.out)
    require_device(arguments)
    from bertjax.tools import convert_hf

    for line in convert_hf.import_folder(source, out):
        print(f"note: {line}", file=sys.stderr)
    return print_result(str(out))


@command(
    "export",
    "convert a bertjax checkpoint to a Hugging Face folder",
    CHECKPOINT,
    option("out", metavar="OUT"),
    examples=("bertjax export runs/qa hf/qa",),
)
def export(arguments: argparse.Namespace) -> int:
    source, out = existing_path(arguments.checkpoint), new_dir(arguments.out)
    require_device(arguments)
    from bertjax.tools import convert_hf
    from bertjax.training.untrained_heads import format_modules

    if left_out := convert_hf.export_checkpoint(source, out):
        print(f"note: not exported, the Hugging Face class lacks them: {format_modules(left_out)}", file=sys.stderr)
    return print_result(str(out))
