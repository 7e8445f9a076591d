"""Every command: what runs it, its help, options and examples. Read by cli.py; nothing heavy is imported."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

from bertjax.cli.commands import (
    answer,
    compare,
    doctor,
    evaluate,
    export,
    fill_mask,
    generate,
    import_folder,
    inspect,
    mix,
    plan,
    prepare,
    qa_report,
    score_squad,
    train,
    verify,
    write_report,
)

Option = tuple[tuple[str, ...], dict[str, Any]]


def option(*names: str, **settings: Any) -> Option:
    return names, settings


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above zero (got '{text}')")
    return int(text)


def _non_negative_int(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, counted from zero (got '{text}')")
    return int(text)


def _positive_ints(text: str) -> list[int]:
    return [_positive_int(part) for part in text.split(",")]


def _positive_floats(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < number < float("inf") for number in found):
        raise argparse.ArgumentTypeError(f"must be numbers above zero, with commas between (got '{text}')")
    return found


def _positive_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    return number if 0 < number < math.inf else _reject("a number above zero", text)


def _length_penalty(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    return number if -2 <= number <= 100 else _reject("a number from -2 to 100", text)


def _fraction(text: str) -> float:
    number = _positive_float(text)
    return number if number <= 1 else _reject("above 0 and at most 1", text)


def _finite_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    return number if isfinite(number) else _reject("a number", text)


def _reject(what: str, text: str) -> float:
    raise argparse.ArgumentTypeError(f"must be {what} (got '{text}')")


@dataclass(frozen=True)
class Command:
    run: Callable[[argparse.Namespace], int]
    help: str
    options: tuple[Option, ...]
    examples: tuple[str, ...]
    overrides: bool = False  # takes key.path=value
    rest: str = ""  # what may stand behind `--`


CONFIG = option("config", metavar="CONFIG", help="a YAML file")
CHECKPOINT = option("checkpoint", metavar="CHECKPOINT", help="a run folder or one of its checkpoints")
DEVICE = option("--device", choices=("cpu", "gpu", "tpu"), help="where to compute (default: the best there is)")
DTYPE = option(
    "--dtype",
    choices=("float32", "bfloat16"),
    help="what to compute in (default: the run's run.compute_dtype; of imported weights, what they are stored in)",
)
STEP = option("--step", type=_positive_int, help="a checkpoint's step (default: the newest)")
BASE = option(
    "--base",
    metavar="PATH",
    help="of a checkpoint that holds adapters alone: the run, checkpoint or Hugging Face folder with the weights below "
    "them (default: where it was)",
)
OUTPUT = option("--output", metavar="FILE", help="where to write it")

COMMANDS = {
    "train": Command(
        train,
        "start a run, or resume it: the same command",
        (CONFIG, DEVICE),
        ("bertjax train configs/debug/cpu.yaml", "bertjax train my.yaml run.name=trial stages.pretrain.steps=100"),
        overrides=True,
    ),
    "evaluate": Command(
        evaluate,
        "restore a checkpoint and score it",
        (
            option("run", metavar="RUN", help="a run folder or one of its checkpoints"),
            STEP,
            option("--best", metavar="SCORE", help="the checkpoint with the best score of training, such as squad/f1"),
            option("--stage", metavar="NAME", help="the stage to score (default: the last one)"),
            option("--name", metavar="EVAL", help="only the evaluation of this name"),
            option(
                "--output",
                metavar="FOLDER",
                help="where to keep scores and predictions (default: in the run, apart from its own record where the "
                "evaluation differs from it); or a .json file for the scores of one evaluation",
            ),
            BASE,
            DEVICE,
            DTYPE,
        ),
        (
            "bertjax evaluate runs/qa --device cpu",
            "bertjax evaluate runs/qa --stage squad --step 2000",
            "bertjax evaluate runs/t5 --best squad/squad_em --name squad",
            "bertjax evaluate runs/qa stages.squad.evaluate.squad.data.source.files=[other.json] --output scores/",
        ),
        overrides=True,
    ),
    "compare": Command(
        compare,
        "train each way of fine-tuning the config lists under compare, and tabulate scores and costs",
        (CONFIG, DEVICE, option("--json", action="store_true", help="as JSON")),
        ("bertjax compare configs/recipes/compare_finetuning.yaml",),
        overrides=True,
    ),
    "predict fill-mask": Command(
        fill_mask,
        "the most likely tokens at each [MASK]",
        (
            CHECKPOINT,
            option("text", metavar="TEXT", nargs="+", help="text with [MASK] in it"),
            option("--top-k", type=_positive_int, default=5, help="answers for each [MASK] (default: 5)"),
            DEVICE,
            DTYPE,
        ),
        ("bertjax predict fill-mask runs/demo 'Return the [MASK] of the list.'",),
    ),
    "predict answer": Command(
        answer,
        "the span of a text that answers a question",
        (
            CHECKPOINT,
            option("--question", metavar="Q", required=True),
            option("--context", metavar="TEXT", help="the text that holds the answer"),
            option("--context-file", metavar="FILE", help="the same, from a UTF-8 file"),
            option("--n-best", type=_positive_int, default=3, help="how many candidates to list (default: 3)"),
            option(
                "--null-threshold",
                metavar="X",
                type=_finite_float,
                help='"no answer" where the null odds are above X '
                "(default: the stage's, if it learnt from unanswerable questions)",
            ),
            option(
                "--min-probability", metavar="P", type=_fraction, help='"no answer" where the best one\'s is below P'
            ),
            DEVICE,
            DTYPE,
        ),
        (
            "bertjax predict answer runs/qa --question 'What is a list?' --context-file lists.txt",
            "bertjax predict answer runs/qa --question 'Who?' --context 'It rained.' --null-threshold -1.5",
        ),
    ),
    "predict generate": Command(
        generate,
        "text that a T5 run makes of other text; of a decoder alone, what follows it",
        (
            CHECKPOINT,
            option("text", metavar="[TEXT ...]", nargs="*", help="input texts (default: the lines of standard input)"),
            option("--file", metavar="FILE", help="input texts, one a line, UTF-8"),
            option(
                "--beam",
                dest="beam_size",
                metavar="N",
                type=_positive_int,
                help="beams (default: the run's own, else 1)",
            ),
            option("--beam-rules", choices=("t5x", "transformers"), help="of beams (default: the run's own, else t5x)"),
            option("--length-penalty", metavar="X", type=_length_penalty, help="of beams (default: 0.6, or the run's)"),
            option("--sample", action="store_true", help="draw tokens instead of searching"),
            option("--temperature", metavar="X", type=_positive_float, help="of --sample (default: 1)"),
            option("--top-k", metavar="K", type=_positive_int, help="of --sample: only the K likeliest tokens"),
            option("--top-p", metavar="P", type=_fraction, help="of --sample: the fewest tokens that together have P"),
            option("--seed", metavar="N", type=_positive_int, default=1, help="of --sample (default: 1)"),
            option(
                "--max-input-tokens",
                metavar="N",
                type=_positive_int,
                help="cut inputs to N tokens, their end counted (default: read them whole)",
            ),
            option("--max-new-tokens", metavar="N", type=_positive_int, help="default: as in the run's data"),
            option("--json", action="store_true", help="as JSON, with the input texts"),
            BASE,
            DEVICE,
            DTYPE,
        ),
        (
            "bertjax predict generate runs/t5 'translate English to German: Thank you.' --beam 4",
            "bertjax predict generate runs/t5 --file articles.txt --json",
            "bertjax predict generate runs/t5/checkpoints/00-pretrain 'Thank <extra_id_0> me.' --sample --top-p 0.9",
        ),
    ),
    "prepare": Command(
        prepare,
        "tokenise and store the training data ahead of a run",
        (
            CONFIG,
            option("--runner", choices=("local", "beam"), default="local", help="of the work (default: local)"),
            option("--workers", metavar="N", type=_positive_int, help="processes on this machine (default: its cores)"),
            option("--beam-args", metavar="OPTIONS", help="--beam-args='--region=r ...'; they may also follow `--`"),
            option("--verify", action="store_true", help="read every shard again and compare it with its manifest"),
        ),
        (
            "bertjax prepare configs/bert/pretrain_base.yaml --workers 8 --verify",
            "bertjax prepare my.yaml --runner beam run.prepared_dir=gs://bucket/data -- --runner=DataflowRunner ...",
        ),
        overrides=True,
        rest="BEAM_OPTION",
    ),
    "mix": Command(
        mix,
        "what a mixture comes to: rates, epochs and tokens of each task",
        (
            CONFIG,
            option("--count", metavar="TASK:COUNT", action="append", help="state examples instead of reading data"),
            option(
                "--limits",
                metavar="K,K",
                type=_positive_ints,
                help="limits to try (default: powers of two that matter)",
            ),
            option(
                "--temperatures", metavar="T,T", type=_positive_floats, default=[2.0, 4.0], help="to try (default: 2,4)"
            ),
            option("--json", action="store_true", help="as JSON"),
        ),
        ("bertjax mix my.yaml", "bertjax mix my.yaml --count news:9000000 --count books:70000 --limits 65536,524288"),
        overrides=True,
    ),
    "inspect": Command(
        inspect,
        "the model, what trains at a step, sizes and costs",
        (
            option("target", metavar="CONFIG|CHECKPOINT", help="a YAML file, a run folder or a checkpoint"),
            STEP,
            option("--json", action="store_true", help="as JSON"),
        ),
        ("bertjax inspect configs/bert/pretrain_base.yaml", "bertjax inspect my.yaml --step 500"),
        overrides=True,
    ),
    "plan": Command(
        plan,
        "compile a configuration for a pod or GPUs that are not here: does it fit, what travels, how fast at best",
        (
            CONFIG,
            option("--topology", metavar="T", required=True, help="v5e:16x16, v5p-128, h200:2x8 (hosts x GPUs), cpu:8"),
            option("--stage", metavar="NAME", help="only this stage (default: all of them; of --sweep the first)"),
            option(
                "--episode",
                metavar="N",
                type=_non_negative_int,
                help="of gradual unfreezing, from 0 (default: the last)",
            ),
            option(
                "--sweep", action="store_true", help="try other meshes, batch sizes and remat policies, and rank them"
            ),
            option(
                "--limit", metavar="N", type=_positive_int, help="of --sweep: compile no more than this (default: 24)"
            ),
            option("--json", action="store_true", help="as JSON"),
        ),
        (
            "bertjax plan configs/bert/pretrain_large.yaml --topology v5e:16x16 mesh.fsdp=16",
            "bertjax plan configs/t5/pretrain_3b.yaml --topology v5p:4x4x4 --json",
            "bertjax plan configs/t5/pretrain_large.yaml --topology h200:8 --sweep --limit 12",
        ),
        overrides=True,
    ),
    "import": Command(
        import_folder,
        "turn a Hugging Face folder into a bertjax checkpoint",
        (option("source", metavar="HF_FOLDER"), option("out", metavar="OUT")),
        ("bertjax import bert-base-uncased/ checkpoints/bert-base",),
    ),
    "export": Command(
        export,
        "turn a bertjax checkpoint into a Hugging Face folder",
        (CHECKPOINT, option("out", metavar="OUT")),
        ("bertjax export runs/qa hf/qa",),
    ),
    "report": Command(
        write_report,
        "one HTML page about a run",
        (option("run", metavar="RUN", help="a run folder"), OUTPUT),
        ("bertjax report runs/demo --output demo.html",),
    ),
    "qa-report": Command(
        qa_report,
        "the same questions answered by span, from the context and from memory: scores and answers side by side",
        (
            option("--extractive", metavar="RUN", help="a run with a QA head: spans of the context"),
            option("--context", metavar="RUN", help="a T5 run that reads question and context"),
            option("--closed-book", metavar="RUN", help="a T5 run that reads the question alone"),
            option("--data", metavar="SQUAD", help="questions, SQuAD JSON (default: the first run's evaluation)"),
            option("--limit", metavar="N", type=_positive_int, help="only a sample of so many questions"),
            option("--output", metavar="FILE", help="the page, and its .json beside it (default: qa-report.html)"),
            option("--json", action="store_true", help="print the scores as JSON"),
            DEVICE,
        ),
        ("bertjax qa-report --extractive runs/qa --context runs/t5-squad --closed-book runs/t5-closed-book",),
    ),
    "score squad": Command(
        score_squad,
        "score SQuAD predictions by the official rules",
        (
            option("gold", metavar="GOLD", help="the SQuAD JSON, v1.1 or v2.0"),
            option("predictions", metavar="PREDICTIONS", help="JSON: question id -> answer"),
            option("--na-prob-file", metavar="FILE", help="JSON: question id -> probability of no answer"),
            option("--na-prob-thresh", metavar="X", type=float, default=1.0, help="no answer above it (default: 1)"),
            OUTPUT,
        ),
        ("bertjax score squad dev-v2.0.json predictions.json",),
    ),
    "verify": Command(
        verify,
        "compare with the reference implementations' numbers; exit code 1 if one differs",
        (option("--json", action="store_true", help="as JSON"),),
        ("bertjax verify",),
    ),
    "doctor": Command(
        doctor,
        "check this machine, or all machines of a job together",
        (option("--cluster", action="store_true", help="run on every process, as `bertjax train` would be"),),
        ("bertjax doctor", "srun bertjax doctor --cluster"),
    ),
}
