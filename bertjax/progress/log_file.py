"""A log file of bounded size: lines with their time, appended by each process that runs."""

import os
import threading
from datetime import datetime
from pathlib import Path

MAX_BYTES = 16 << 20  # then the file is renamed to NAME.1, which replaces an older one


class LogFile:
    """Lines of one process in `path`, opened with the first line. A file that cannot be written is given up."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path, self.max_bytes = path, max_bytes
        self._lock = threading.Lock()
        self._usable = True

    def write(self, text: str, when: float) -> None:
        """Append each line of `text` with the local time `when` (seconds since the epoch) and its offset from UTC."""
        stamp = datetime.fromtimestamp(when).astimezone().isoformat(timespec="seconds")
        data = "".join(f"{stamp} {line}\n" for line in text.splitlines()).encode("utf-8", "backslashreplace")
        with self._lock:
            if not self._usable:
                return
            try:
                if self.path.exists() and self.path.stat().st_size + len(data) > self.max_bytes:
                    os.replace(self.path, self.path.with_name(self.path.name + ".1"))
                # Opened for each line: rare, and another process may rename it.
                with open(self.path, "ab", opener=_no_follow) as out:
                    out.write(data)
            except OSError:  # a full disk: metrics.jsonl or the next checkpoint reports it
                self._usable = False


def _no_follow(path: str, flags: int) -> int:
    """Not a symbolic link, which may lead to any file of the user."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
