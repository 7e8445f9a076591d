"""`python -m bertjax`."""

import sys
from pathlib import Path

# Python puts the current directory first, which may be a folder of data with modules of any name in it. `python -P`
# and the command `bertjax` do not; a checkout that is not installed needs it.
if not sys.flags.safe_path and sys.path[:1] == [str(Path.cwd())] != [str(Path(__file__).resolve().parents[1])]:
    del sys.path[0]

from bertjax.cli.main import run_process  # noqa: E402

run_process()
