"""`python -m bertjax`."""

from bertjax.cli.main import run_process

run_process()
