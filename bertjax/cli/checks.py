"""`bertjax verify`, `verify-run` and `doctor`: check the code by reference numbers, a run by digests, the machine."""

import argparse
import logging

from bertjax.cli import arguments as cli
from bertjax.errors import StorageError


@cli.command(
    "verify",
    "compare results with the reference implementations; exit code 1 on any difference",
    cli.JSON,
    examples=("bertjax verify",),
)
def verify(arguments: argparse.Namespace) -> int:
    cli.require_device(arguments)
    from bertjax.verify.checks import CHECKS
    from bertjax.verify.runner import run_check

    logging.disable(logging.WARNING)  # the golden files contain invalid input on purpose
    try:
        results = [run_check(check) for check in CHECKS]
    finally:
        logging.disable(logging.NOTSET)
    failed = sum(bool(result.mismatches) for result in results)
    if arguments.json:
        cli.print_result([result.as_dict() for result in results])
    else:
        cli.print_result("\n".join(line for result in results for line in result.as_lines()))
        compared, skipped = sum(r.compared for r in results), sum(not r.passed and not r.mismatches for r in results)
        left = sum(len(result.skipped) for result in results)
        verdict = f"{failed} FAILED" if failed else "all passed"
        verdict += f", {skipped} skipped" if skipped else ""
        verdict += f"; {left} parts not compared" if left else ""
        print(f"{compared:,} comparisons in {len(results)} checks: {verdict}")
    return 1 if failed else 0


@cli.command(
    "verify-run",
    "read all checkpoints of a run and compare them with their digests; exit code 4 on any damage",
    cli.RUN,
    cli.DEVICE,
    cli.JSON,
    examples=("bertjax verify-run runs/qa", "bertjax verify-run runs/qa/checkpoints/01-qa"),
    note="nothing is changed: a damaged checkpoint is moved aside when the run resumes",
)
def verify_run(arguments: argparse.Namespace) -> int:
    cli.select_platform(arguments)
    from bertjax.tools.verify_run import verify_run_command

    found, is_good = verify_run_command(arguments.run, arguments.json)
    cli.print_result(found)
    return 0 if is_good else StorageError.exit_code


@cli.command(
    "doctor",
    "check this machine, or all machines of a job together",
    cli.option("--cluster", action="store_true", help="check all processes of a job; start it like `bertjax train`"),
    examples=("bertjax doctor", "srun bertjax doctor --cluster"),
    note="srun: in a Slurm job",
)
def doctor(arguments: argparse.Namespace) -> int:
    from bertjax.tools.doctor import doctor, doctor_cluster

    lines, ok = doctor_cluster() if arguments.cluster else doctor()
    if lines:
        print("\n".join(lines))
    return 0 if ok else 2
