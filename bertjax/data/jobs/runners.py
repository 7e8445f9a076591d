"""How `bertjax prepare` runs its jobs: in processes of this machine or Beam pipelines."""

import shlex
from collections.abc import Sequence

from bertjax.data.jobs.jobs import LocalRunner, Runner
from bertjax.errors import UserError


def beam_options(joined: str | None, separate: Sequence[str]) -> list[str]:
    """Beam's options from one string (`--beam-args`) and from the arguments after `--`."""
    try:
        return [*shlex.split(joined or ""), *separate]
    except ValueError as error:
        raise UserError(f"--beam-args: {error} in {joined!a:.80}; close the quotes") from None


def make_runner(name: str, beam_args: Sequence[str] = (), workers: int = 1) -> Runner:
    """The runner called `name`; `beam_args` are Beam's own pipeline options (`--runner=DataflowRunner` ...).
    Without them Beam runs on this machine, in `workers` processes.

    Raises UserError when Beam is not installed or does not know one of the options.
    """
    if name == "local":
        if beam_args:
            raise UserError(f"options for Beam ({beam_args[0][:60]} ...) need --runner beam")
        return LocalRunner()
    try:
        import apache_beam  # noqa: F401
    except ImportError:
        raise UserError(
            "--runner beam: Apache Beam is missing; in an environment of its own: pip install 'bertjax[beam,gcs]'"
        ) from None

    from bertjax.data.jobs.beam_runner import BeamRunner

    return BeamRunner(beam_args, workers)
