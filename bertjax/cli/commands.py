"""What each command does and takes. A command imports what it needs when it runs, and not before."""

import argparse
import json
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertjax.errors import UserError
from bertjax.interrupts import exit_on_signal
from bertjax.storage.locations import local_path

if TYPE_CHECKING:
    from bertjax.config.schema.run import Config

_PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}


def _select_platform(arguments: argparse.Namespace) -> None:
    """Comes before any of our modules that import jax: it reads JAX_PLATFORMS and starts its threads then."""
    from bertjax.parallel.host_allocator import cpu_only, keep_freed_memory

    if arguments.device:
        os.environ["JAX_PLATFORMS"] = _PLATFORMS[arguments.device]
    if cpu_only():
        keep_freed_memory()


def _require_device(arguments: argparse.Namespace) -> None:
    """The same for commands of one process: raises UserError at once when there is no such device.

    Training asks for its devices itself, once its processes have met. Commands without --device take JAX_PLATFORMS.
    """
    if hasattr(arguments, "device"):
        _select_platform(arguments)
    from bertjax.parallel.mesh import all_devices

    all_devices()


def _dtype(arguments: argparse.Namespace) -> list[str]:
    """--dtype as an override of the checkpoint's configuration."""
    return [f"run.compute_dtype={arguments.dtype}"] if arguments.dtype else []


def _load_config(arguments: argparse.Namespace) -> "Config":
    from bertjax.config.loading.load import load

    return load(local_path(arguments.config), arguments.overrides)


def _print_result(result: Any) -> int:
    print(result if isinstance(result, str) else json.dumps(result, indent=2, ensure_ascii=False))
    return 0


def train(arguments: argparse.Namespace) -> int:
    early = "stopped before anything began; run the same command again"
    with exit_on_signal(lambda: early, early):  # until the run handles signals itself
        config = _load_config(arguments)
        _select_platform(arguments)
        from bertjax.evaluation.evaluators.build import build_evaluators
        from bertjax.training import loop

        loop.train(config, Path.cwd(), build_evaluators)
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    run = _existing_path(arguments.run)
    output = local_path(arguments.output) if arguments.output else None
    if output is not None:
        _existing_path(str(output.parent))
    _require_device(arguments)
    from bertjax.tools.evaluate import evaluate_command

    where = (arguments.step, arguments.stage, arguments.name)
    overrides = arguments.overrides + _dtype(arguments)
    return _print_result(
        evaluate_command(run, *where, overrides, arguments.best, output, **_base_model_argument(arguments))
    )


def compare(arguments: argparse.Namespace) -> int:
    config = _load_config(arguments)
    _select_platform(arguments)
    from bertjax.tools.compare import compare_command

    return _print_result(compare_command(config, Path.cwd(), arguments.json))


def fill_mask(arguments: argparse.Namespace) -> int:
    checkpoint = _existing_path(arguments.checkpoint)
    _require_device(arguments)
    from bertjax.evaluation import predict

    return _print_result(predict.fill_mask(checkpoint, arguments.text, arguments.top_k, overrides=_dtype(arguments)))


def answer(arguments: argparse.Namespace) -> int:
    checkpoint, context = _existing_path(arguments.checkpoint), arguments.context
    if (context is None) == (arguments.context_file is None):
        raise UserError("bertjax predict answer: give either --context or --context-file")
    if context is None:
        from bertjax.storage.text import read_text

        context = read_text(local_path(arguments.context_file), 10_000_000)
    _require_device(arguments)
    from bertjax.evaluation import predict

    asked = (arguments.question, context, arguments.n_best, arguments.null_threshold, arguments.min_probability)
    return _print_result(predict.answer(checkpoint, *asked, overrides=_dtype(arguments)))


def generate(arguments: argparse.Namespace) -> int:
    given = {
        name: getattr(arguments, name)
        for name in ("beam_size", "beam_rules", "length_penalty", "temperature", "top_k", "top_p", "max_new_tokens")
    }
    choices = {name: value for name, value in given.items() if value is not None}
    if arguments.sample:
        choices["sample"] = True
        if not choices.keys().isdisjoint(("beam_size", "beam_rules", "length_penalty")):
            raise UserError("bertjax predict generate: --sample draws and --beam searches; use one of them")
    elif drawing := [name for name in ("temperature", "top_k", "top_p") if name in choices]:
        raise UserError(f"bertjax predict generate: --{drawing[0].replace('_', '-')} needs --sample")
    checkpoint = _existing_path(arguments.checkpoint)
    texts = _texts(arguments)
    _require_device(arguments)
    base = _base_model_argument(arguments)
    from bertjax.evaluation import predict

    reads = {"max_input_tokens": arguments.max_input_tokens, "overrides": _dtype(arguments)}
    found = predict.generate(checkpoint, texts, choices, arguments.seed, **reads, **base)
    return _print_result(found if arguments.json else "\n".join(one["generated"] for one in found))


def _texts(arguments: argparse.Namespace) -> list[str]:
    """Those on the command line, else the lines of --file or of standard input."""
    if arguments.text and arguments.file:
        raise UserError("bertjax predict generate: give either TEXT or --file")
    if arguments.text:
        return list(arguments.text)
    if arguments.file:
        from bertjax.storage.text import read_text

        content = read_text(local_path(arguments.file), 100_000_000)
    else:
        try:
            content = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"standard input: not UTF-8 text (byte {error.start}); convert it first") from None
    if not content.strip():
        raise UserError(f"{arguments.file or 'standard input'}: holds no text; give one text a line")
    return [line.rstrip("\r") for line in content.removesuffix("\n").split("\n")]


def prepare(arguments: argparse.Namespace) -> int:
    if arguments.workers:
        arguments.overrides.append(f"run.prepare_workers={arguments.workers}")
    config = _load_config(arguments)
    from bertjax.tools.prepare import prepare_command

    prepare_command(config, arguments.runner, arguments.beam_args, arguments.rest, arguments.verify)
    return 0


def mix(arguments: argparse.Namespace) -> int:
    config = _load_config(arguments)
    from bertjax.data.pipeline.mixture_report import MixtureSize, build_report, parse_counts
    from bertjax.tools.prepare import open_stage_data
    from bertjax.training.inputs import check_data

    if arguments.count:
        stated = parse_counts(arguments.count, config)
        sizes = [MixtureSize.from_counts(config, stage, stated) for stage in config.stages]
    else:
        check_data(config, Path.cwd())
        report = partial(print, file=sys.stderr, flush=True)
        sizes = [MixtureSize.from_batches(config, stage, batches) for stage, batches in open_stage_data(config, report)]
    found = [build_report(size, arguments.limits, arguments.temperatures) for size in sizes]
    return _print_result(
        [each.as_dict() for each in found] if arguments.json else "\n".join(each.as_text() for each in found)
    )


def inspect(arguments: argparse.Namespace) -> int:
    target = _existing_path(arguments.target)
    if target.is_file():  # a faulty configuration is answered before jax is imported
        arguments.config = arguments.target
        _load_config(arguments)
    _require_device(arguments)
    from bertjax.tools.inspect import inspect_command

    return _print_result(inspect_command(target, arguments.overrides, arguments.step, arguments.json))


def plan(arguments: argparse.Namespace) -> int:
    config = _load_config(arguments)
    from bertjax.plan.subprocess_runner import plan_command

    return plan_command(config, arguments)


def import_folder(arguments: argparse.Namespace) -> int:
    source, out = _existing_path(arguments.source), _new_dir(arguments.out)
    _require_device(arguments)
    from bertjax.tools import convert_hf

    for line in convert_hf.import_folder(source, out):
        print(f"note: {line}", file=sys.stderr)
    return _print_result(str(out))


def export(arguments: argparse.Namespace) -> int:
    source, out = _existing_path(arguments.checkpoint), _new_dir(arguments.out)
    _require_device(arguments)
    from bertjax.tools import convert_hf
    from bertjax.training.untrained_heads import format_modules

    if left_out := convert_hf.export_checkpoint(source, out):
        print(f"note: left out, its class has no place for them: {format_modules(left_out)}", file=sys.stderr)
    return _print_result(str(out))


def write_report(arguments: argparse.Namespace) -> int:
    run, output = _existing_path(arguments.run), _output_path(arguments.output)
    from bertjax import report as bertjax_report

    return _print_result(str(bertjax_report.write_report(run, output)))


def qa_report(arguments: argparse.Namespace) -> int:
    named = {"extractive": arguments.extractive, "context": arguments.context, "closed_book": arguments.closed_book}
    runs = {way: _existing_path(run) for way, run in named.items() if run}
    data = _existing_path(arguments.data) if arguments.data else None
    output = _output_path(arguments.output) or Path("qa-report.html")
    _require_device(arguments)
    from bertjax.tools import qa_report as tools_qa_report

    report = tools_qa_report.qa_report(runs, data=data, limit=arguments.limit, output=output)
    if arguments.json:
        return _print_result({name: report[name] for name in ("source", "questions", "ways")})
    return _print_result(f"{tools_qa_report.format_text(report)}\n\n{output.with_suffix('.html')}")


def score_squad(arguments: argparse.Namespace) -> int:
    gold, predictions = _existing_path(arguments.gold), _existing_path(arguments.predictions)
    na_prob_file = _existing_path(arguments.na_prob_file) if arguments.na_prob_file else None
    output = _output_path(arguments.output)
    from bertjax.evaluation.metrics.squad import score_command
    from bertjax.storage import atomic

    scores = score_command(gold, predictions, na_prob_file, arguments.na_prob_thresh)
    if not output:
        return _print_result(scores)
    atomic.write_json_atomic(output, scores, indent=2)
    return 0


def verify(arguments: argparse.Namespace) -> int:
    _require_device(arguments)
    from bertjax.verify.checks import CHECKS
    from bertjax.verify.runner import run_check as compare

    logging.disable(logging.WARNING)  # the goldens hold bad input on purpose
    try:
        results = [compare(check) for check in CHECKS]
    finally:
        logging.disable(logging.NOTSET)
    if arguments.json:
        _print_result([r.as_dict() for r in results])
    else:
        _print_result("\n".join(line for r in results for line in r.as_lines()))
        wrong = sum(bool(r.mismatches) for r in results)
        compared = sum(r.compared for r in results)
        verdict = f"{wrong} FAILED" if wrong else "all as they should be"
        print(f"{compared:,} comparisons in {len(results)} checks: {verdict}")
    return 1 if any(r.mismatches for r in results) else 0


def doctor(arguments: argparse.Namespace) -> int:
    from bertjax.tools.doctor import doctor as check
    from bertjax.tools.doctor import doctor_cluster

    lines, ok = doctor_cluster() if arguments.cluster else check()
    if lines:
        print("\n".join(lines))
    return 0 if ok else 2


def _base_model_argument(arguments: argparse.Namespace) -> dict[str, Any]:
    """The folder with the weights below a checkpoint's adapters, where a person names it."""
    return {"base_model": _existing_path(arguments.base)} if arguments.base else {}


def _existing_path(path: str) -> Path:
    found = local_path(path)
    try:
        if found.exists():
            return found
    except (OSError, ValueError):  # a name too long, or one with a NUL in it
        pass
    raise UserError(f"{path[:200]!a}: no such file or folder")


def _output_path(path: str | None) -> Path | None:
    """A file to write, in a folder that is there: found out before the work, not after it."""
    if path is None:
        return None
    out = local_path(path)
    _existing_path(str(out.parent))
    if out.is_dir():
        raise UserError(f"{path[:200]!a}: is a folder; name a file")
    return out


def _new_dir(path: str) -> Path:
    out = local_path(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{path[:200]!a}: is there already; name a new folder")
    return out
