"""The command `bertjax`, and `python -m bertjax`."""

import sys
from pathlib import Path
from typing import NoReturn


def main() -> NoReturn:
    """Run a command and end the process with its exit code."""
    from bertjax.interrupts import install_process_handlers

    install_process_handlers()
    from bertjax.cli.main import run_process  # takes a while

    run_process()


if __name__ == "__main__":
    # Python puts the current directory first, which may be a folder of data with modules of any name in it. `python -P`
    # and the command `bertjax` do not; a checkout that is not installed needs it.
    if not sys.flags.safe_path and sys.path[:1] == [str(Path.cwd())] != [str(Path(__file__).resolve().parents[1])]:
        del sys.path[0]
    main()
