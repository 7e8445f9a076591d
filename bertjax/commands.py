"""What each command does and takes. A command imports what it needs when it runs, and not before."""

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertjax.config.locations import local_path
from bertjax.errors import UserError

if TYPE_CHECKING:
    from bertjax.config.schema import Config

_PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}


def _choose_device(arguments: argparse.Namespace) -> None:
    """Comes before any of our modules that import jax: it reads JAX_PLATFORMS and starts its threads then."""
    from bertjax.training.allocator import cpu_only, keep_freed_memory

    if arguments.device:
        os.environ["JAX_PLATFORMS"] = _PLATFORMS[arguments.device]
    if cpu_only():
        keep_freed_memory()


def _use_device(arguments: argparse.Namespace) -> None:
    """The same for commands of one process: raises UserError at once when there is no such device.

    Training asks for its devices itself, once its processes have met. Commands without --device take JAX_PLATFORMS.
    """
    if hasattr(arguments, "device"):
        _choose_device(arguments)
    from bertjax.parallel.devices import all_devices

    all_devices()


def _dtype(arguments: argparse.Namespace) -> list[str]:
    """--dtype as an override of the checkpoint's configuration."""
    return [f"run.compute_dtype={arguments.dtype}"] if arguments.dtype else []


def _load(arguments: argparse.Namespace) -> "Config":
    from bertjax.config.load import load

    return load(local_path(arguments.config), arguments.overrides)


def _show(result: Any) -> int:
    print(result if isinstance(result, str) else json.dumps(result, indent=2, ensure_ascii=False))
    return 0


def train(arguments: argparse.Namespace) -> int:
    with _stoppable():
        config = _load(arguments)
        _choose_device(arguments)
        from bertjax.evaluation.evaluate import build_evaluators
        from bertjax.training import loop

        loop.train(config, Path.cwd(), build_evaluators)
    return 0


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM or Ctrl-C before the run listens itself: nothing has begun, so the process just goes, with 75."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: object) -> None:
        print("stopped before anything began; run the same command again", file=sys.stderr, flush=True)
        os._exit(75)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def evaluate(arguments: argparse.Namespace) -> int:
    run = _existing(arguments.run)
    output = local_path(arguments.output) if arguments.output else None
    if output is not None:
        _existing(str(output.parent))
    _use_device(arguments)
    from bertjax.evaluation.evaluate import evaluate_command

    where = (arguments.step, arguments.stage, arguments.name)
    overrides = arguments.overrides + _dtype(arguments)
    return _show(evaluate_command(run, *where, overrides, arguments.best, output, **_base(arguments)))


def compare(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    _choose_device(arguments)
    from bertjax.evaluation.compare import compare_command

    return _show(compare_command(config, Path.cwd(), arguments.json))


def fill_mask(arguments: argparse.Namespace) -> int:
    checkpoint = _existing(arguments.checkpoint)
    _use_device(arguments)
    from bertjax.evaluation import probes

    return _show(probes.fill_mask(checkpoint, arguments.text, arguments.top_k, overrides=_dtype(arguments)))


def answer(arguments: argparse.Namespace) -> int:
    checkpoint, context = _existing(arguments.checkpoint), arguments.context
    if (context is None) == (arguments.context_file is None):
        raise UserError("bertjax predict answer: give either --context or --context-file")
    if context is None:
        from bertjax.config.strict_yaml import read_text

        context = read_text(local_path(arguments.context_file), 10_000_000)
    _use_device(arguments)
    from bertjax.evaluation import probes

    asked = (arguments.question, context, arguments.n_best, arguments.null_threshold, arguments.min_probability)
    return _show(probes.answer(checkpoint, *asked, overrides=_dtype(arguments)))


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
    checkpoint = _existing(arguments.checkpoint)
    texts = _texts(arguments)
    _use_device(arguments)
    base = _base(arguments)
    from bertjax.evaluation import probes

    reads = {"max_input_tokens": arguments.max_input_tokens, "overrides": _dtype(arguments)}
    found = probes.generate(checkpoint, texts, choices, arguments.seed, **reads, **base)
    return _show(found if arguments.json else "\n".join(one["generated"] for one in found))


def _texts(arguments: argparse.Namespace) -> list[str]:
    """Those on the command line, else the lines of --file or of standard input."""
    if arguments.text and arguments.file:
        raise UserError("bertjax predict generate: give either TEXT or --file")
    if arguments.text:
        return list(arguments.text)
    if arguments.file:
        from bertjax.config.strict_yaml import read_text

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
    config = _load(arguments)
    from bertjax.training.preparing import prepare_command

    prepare_command(config, arguments.runner, arguments.beam_args, arguments.rest, arguments.verify)
    return 0


def mix(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    from bertjax.data import mix as mixes
    from bertjax.training.inputs import check_data
    from bertjax.training.preparing import opened

    if arguments.count:
        stated = mixes.stated_counts(arguments.count, config)
        sizes = [mixes.Size.stated(config, stage, stated) for stage in config.stages]
    else:
        check_data(config, Path.cwd())
        report = partial(print, file=sys.stderr, flush=True)
        sizes = [mixes.Size.of(config, stage, batches) for stage, batches in opened(config, report)]
    found = [mixes.plan(size, arguments.limits, arguments.temperatures) for size in sizes]
    return _show([each.as_dict() for each in found] if arguments.json else "\n".join(each.as_text() for each in found))


def inspect(arguments: argparse.Namespace) -> int:
    target = _existing(arguments.target)
    if target.is_file():  # a faulty configuration is answered before jax is imported
        arguments.config = arguments.target
        _load(arguments)
    _use_device(arguments)
    from bertjax.training.inspect import inspect_command

    return _show(inspect_command(target, arguments.overrides, arguments.step, arguments.json))


def plan(arguments: argparse.Namespace) -> int:
    config = _load(arguments)
    from bertjax.plan.child import plan_command

    return plan_command(config, arguments)


def import_folder(arguments: argparse.Namespace) -> int:
    source, out = _existing(arguments.source), _new(arguments.out)
    _use_device(arguments)
    from bertjax.training import exchange

    for line in exchange.import_folder(source, out):
        print(f"note: {line}", file=sys.stderr)
    return _show(str(out))


def export(arguments: argparse.Namespace) -> int:
    source, out = _existing(arguments.checkpoint), _new(arguments.out)
    _use_device(arguments)
    from bertjax.training import exchange
    from bertjax.training.carried import spell_modules

    if left_out := exchange.export_checkpoint(source, out):
        print(f"note: left out, its class has no place for them: {spell_modules(left_out)}", file=sys.stderr)
    return _show(str(out))


def write_report(arguments: argparse.Namespace) -> int:
    run, output = _existing(arguments.run), _output(arguments.output)
    from bertjax.evaluation import report

    return _show(str(report.write_report(run, output)))


def qa_report(arguments: argparse.Namespace) -> int:
    named = {"extractive": arguments.extractive, "context": arguments.context, "closed_book": arguments.closed_book}
    runs = {way: _existing(run) for way, run in named.items() if run}
    data = _existing(arguments.data) if arguments.data else None
    output = _output(arguments.output) or Path("qa-report.html")
    _use_device(arguments)
    from bertjax.evaluation import qa_report as reports

    report = reports.qa_report(runs, data=data, limit=arguments.limit, output=output)
    if arguments.json:
        return _show({name: report[name] for name in ("source", "questions", "ways")})
    return _show(f"{reports.as_text(report)}\n\n{output.with_suffix('.html')}")


def score_squad(arguments: argparse.Namespace) -> int:
    gold, predictions = _existing(arguments.gold), _existing(arguments.predictions)
    na_prob_file = _existing(arguments.na_prob_file) if arguments.na_prob_file else None
    output = _output(arguments.output)
    from bertjax.evaluation.squad import score_command

    scores = score_command(gold, predictions, na_prob_file, arguments.na_prob_thresh)
    if not output:
        return _show(scores)
    unfinished = output.with_name(f".{output.name}.unfinished")
    unfinished.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, output)
    return 0


def verify(arguments: argparse.Namespace) -> int:
    _use_device(arguments)
    from bertjax.verify.checks import CHECKS
    from bertjax.verify.table import verify as compare

    logging.disable(logging.WARNING)  # the goldens hold bad input on purpose
    try:
        results = [compare(check) for check in CHECKS]
    finally:
        logging.disable(logging.NOTSET)
    if arguments.json:
        _show([r.as_dict() for r in results])
    else:
        _show("\n".join(line for r in results for line in r.as_lines()))
        wrong = sum(bool(r.wrong) for r in results)
        compared = sum(r.compared for r in results)
        verdict = f"{wrong} FAILED" if wrong else "all as they should be"
        print(f"{compared:,} comparisons in {len(results)} checks: {verdict}")
    return 1 if any(r.wrong for r in results) else 0


def doctor(arguments: argparse.Namespace) -> int:
    from bertjax.doctor import doctor as check
    from bertjax.doctor import doctor_of_cluster

    lines, ok = doctor_of_cluster() if arguments.cluster else check()
    if lines:
        print("\n".join(lines))
    return 0 if ok else 2


def _base(arguments: argparse.Namespace) -> dict[str, Any]:
    """The folder with the weights below a checkpoint's adapters, where a person names it."""
    return {"base": _existing(arguments.base)} if arguments.base else {}


def _existing(path: str) -> Path:
    found = local_path(path)
    try:
        if found.exists():
            return found
    except (OSError, ValueError):  # a name too long, or one with a NUL in it
        pass
    raise UserError(f"{path[:200]!a}: no such file or folder")


def _output(path: str | None) -> Path | None:
    """A file to write, in a folder that is there: found out before the work, not after it."""
    if path is None:
        return None
    out = local_path(path)
    _existing(str(out.parent))
    if out.is_dir():
        raise UserError(f"{path[:200]!a}: is a folder; name a file")
    return out


def _new(path: str) -> Path:
    out = local_path(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{path[:200]!a}: is there already; name a new folder")
    return out
