"""Forget host keys of TPU VMs that were made again. Standard library only.

gcloud keeps their keys in google_compute_known_hosts, each under an alias of its own (`tpu.<node>-<worker>`), and
refuses a machine whose key has changed. The launcher drops such an entry only for machines it has not used before.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

# Lines of several workers may be mixed, so files and aliases are collected apart.
_FILE = re.compile(r"Offending (?:\S+ )?key in (\S*google_compute_known_hosts):\d+")
_ALIAS = re.compile(r"Host key for (tpu\.\S+) has changed")


def forget_changed(said: str) -> list[str]:
    """Removes the entries that ssh refuses in its output -> their aliases. Other entries stay as they are."""
    files = {Path(name).expanduser() for name in _FILE.findall(said)}
    return sorted({alias for alias in _ALIAS.findall(said) for file in files if _remove(alias, file)})


def _remove(alias: str, file: Path) -> bool:
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError:
        return False
    kept = [line for line in lines if alias not in line.split(" ", 1)[0].split(",")]
    if len(kept) == len(lines):
        return False
    new = file.with_name(f"{file.name}.{os.getpid()}")
    new.touch(0o600)
    new.write_text("".join(kept), encoding="utf-8")
    os.replace(new, file)
    return True
