"""What Gloo says of itself on standard output."""

import re

# Its threads write in pieces: a line may come torn, its beginning within another.
_SAID = re.compile(r"\[Gloo\]|connected to \d+ peer ranks|number of connected peer ranks")


def without(out: str) -> str:
    return "".join(line for line in out.splitlines(keepends=True) if not _SAID.search(line))
