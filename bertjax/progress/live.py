"""The live display of a terminal: one row for each open task, drawn below the lines."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bertjax.progress.text import duration

BAR_WIDTH, SHORT_BAR_WIDTH, GAP = 30, 10, 2  # columns


class LiveDisplay:
    """Rows of tasks at the bottom of a terminal, until `close` removes them."""

    def __init__(self, stream: TextIO, tasks: Callable[[], Sequence[Any]]) -> None:
        self.stream, self._tasks = stream, tasks
        self._console = Console(file=stream, force_terminal=True, highlight=False)
        self._live = Live(
            get_renderable=self._render, console=self._console, auto_refresh=False, transient=True,
            redirect_stdout=_is_terminal(sys.stdout), redirect_stderr=_is_terminal(sys.stderr),
        )  # fmt: skip
        self._live.start()

    def covers(self, stream: TextIO) -> bool:
        """Whether lines of this stream appear on a terminal, where they would disturb the display."""
        return stream is self.stream or _is_terminal(stream)

    def print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def refresh(self) -> None:
        self._live.refresh()

    def close(self) -> None:
        with suppress(OSError, ValueError):  # the terminal is gone
            self._live.stop()

    def restore(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            os.write(self.stream.fileno(), b"\x1b[?25h\r\x1b[J")

    def _render(self) -> Any:
        rows: list[Any] = []
        for task in self._tasks():
            if task.elapsed < task.min_age and task.lines == 0:
                continue
            rows.append(_row(task, self._console.width))
            if detail := task.detail():
                rows.append(Text(f"  {detail}", style="dim", no_wrap=True, overflow="ellipsis"))
        return Group(*rows)


def _row(task: Any, width: int) -> Table:
    """The title, a bar where a total is known, the amounts and the times; what does not fit is left out."""
    share, left = task.share(), task.seconds_left()
    title, times = task.what, duration(task.elapsed) + (f"  ETA {duration(left)}" if left is not None else "")
    amounts = task.amounts_text()
    room = width - cell_len(title) - cell_len(times) - GAP
    cells: list[Any] = [Text(title, style="bold", no_wrap=True, overflow="ellipsis")]
    if share is not None and room >= SHORT_BAR_WIDTH + GAP:
        long = room >= BAR_WIDTH + cell_len(amounts) + 2 * GAP
        cells.append(ProgressBar(total=1.0, completed=share, width=BAR_WIDTH if long else SHORT_BAR_WIDTH))
        room -= (BAR_WIDTH if long else SHORT_BAR_WIDTH) + GAP
    if amounts and room >= cell_len(amounts) + GAP:
        cells.append(Text(amounts, no_wrap=True))
    cells.append(Text(times, style="cyan", no_wrap=True))
    row = Table.grid(padding=(0, GAP, 0, 0))
    row.add_row(*cells)
    return row


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False
