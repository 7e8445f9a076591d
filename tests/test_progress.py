"""What a command says while it works: timed lines, the live display of a terminal, the log, counts of workers."""

import io
import logging
import os
import pty
import re
import threading
import time
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from bertjax.errors import DivergedError
from bertjax.progress import log_file, reporter
from bertjax.progress.counted_file import count_reads
from bertjax.progress.reporter import Reporter
from bertjax.training.monitor import run_log


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """First lines after 50 ms instead of five seconds."""
    for name, value in (("FIRST_SECONDS", 0.05), ("NEXT_SECONDS", 0.3), ("TICK_SECONDS", 0.01)):
        monkeypatch.setattr(reporter, name, value)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# ---- lines where there is no terminal -------------------------------------------------------------------------------


def test_a_task_inside_one_long_call_is_seen_and_a_short_one_is_not(quick: None) -> None:
    out = io.StringIO()
    with reporter.use(Reporter(lines=out, display=lambda: None)) as shown:
        with shown.task("quick"):
            pass
        with shown.task("compiling"):
            wait_for(out.getvalue)  # nothing is advanced
    first, last = out.getvalue().splitlines()
    assert first.startswith("compiling ...") and re.fullmatch(r"compiling: done in \d+\.\d s", last)


def test_an_amount_that_is_expected_later_is_timed_from_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(reporter.time, "monotonic", lambda: now[0])
    task = Reporter(lines=io.StringIO(), display=lambda: None).task("predict")
    now[0] = 130.0  # the model is restored
    task.expect(40, "texts")
    now[0] = 140.0
    task.advance(20, "texts")
    assert task.plain_text() == "predict: 20 of 40 texts (2/s) | 40s | ETA 10s"


def test_tasks_are_seen_after_a_reporter_was_closed(quick: None) -> None:
    out = io.StringIO()
    with reporter.use(Reporter(lines=out, display=lambda: None)) as shown:
        for _ in range(20):
            shown.push(shown.task("one"))
            shown.close()
        with shown.task("another"):
            wait_for(out.getvalue)


def test_lines_are_few_however_often_a_task_advances(quick: None) -> None:
    out = io.StringIO()
    with reporter.use(Reporter(lines=out, display=lambda: None)) as shown, shown.task("reading", 1e6, "bytes"):
        for _ in range(500):
            reporter.advance(2000, "bytes")
            reporter.advance(1, "documents")
            time.sleep(0.001)
    *lines, last = out.getvalue().splitlines()
    assert 2 <= len(lines) <= 25  # FIRST_SECONDS apart and a tenth of the total each
    assert all(re.match(r"reading: .* of 1 MB.*, [\d,]+ documents", line) for line in lines)
    assert last.startswith("reading: 1 MB, 500 documents in ") and "ETA" in lines[0]


def test_only_the_innermost_task_talks_and_not_after_another_line(quick: None) -> None:
    out = io.StringIO()
    with reporter.use(Reporter(lines=out, display=lambda: None)) as shown, shown.task("outer", finish=False):
        with shown.task("inner", finish=False):
            wait_for(out.getvalue)
            before = len(out.getvalue().splitlines())
        assert [line[:5] for line in out.getvalue().splitlines()] == ["inner"] * before
        for _ in range(10):  # a line each 20 ms: it is not silent
            shown.say("line")
            time.sleep(0.02)
        assert "outer" not in out.getvalue()


def test_bytes_of_files_count_before_decompression(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x\n" * 500_000)
    with reporter.use(Reporter(display=lambda: None)) as shown, shown.task("reading") as task:
        with count_reads((tmp_path / "a").open("rb")) as file:
            assert sum(1 for _ in file) == 500_000
        assert task.counts == {"bytes": 1_000_000}


def test_workers_count_for_the_task_that_started_them() -> None:
    with reporter.use(Reporter(display=lambda: None)) as shown, shown.task("making", 300, "rows") as task:
        task.advance(100, "rows")  # found finished
        try:
            reporter.forward_to(reporter.share_with_workers("bytes", "rows"))  # as a worker process does
            reporter.advance(50, "rows")
            reporter.advance(7, "sentences")  # which nobody asked for
        finally:
            reporter.forward_to(None)
        assert task.amounts() == {"rows": 150} and task.share() == 0.5


# ---- the live display -----------------------------------------------------------------------------------------------


def screen(data: str) -> tuple[list[str], bool]:
    """The lines that a terminal shows after this output, and whether its cursor is visible."""
    lines, row, column, cursor = [""], 0, 0, True
    for control, code, text in re.findall(r"\x1b\[([\d;?]*)([A-Za-z])|([^\x1b])", data):
        if text == "\n":
            row += 1
        elif text == "\r":
            column = 0
        elif text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + 1 :]
            column += 1
        elif code == "A":
            row -= int(control or 1)
        elif code == "K":
            lines[row] = "" if control == "2" else lines[row][:column]
        elif code == "J":
            lines[row:] = [lines[row][:column]]
        elif control == "?25":
            cursor = code == "h"
        else:
            assert code == "m", (control, code)
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines if line.strip()], cursor


class Terminal:
    """A pseudo-terminal of 100 columns; `stream` writes to it."""

    def __init__(self) -> None:
        parent, child = pty.openpty()
        self.stream, self._parts, self._parent = open(child, "w"), list[bytes](), parent
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._parent, 65536):
                self._parts.append(data)
        except OSError:  # the other side was closed
            pass

    def show(self) -> tuple[list[str], bool]:
        time.sleep(0.1)
        return screen(b"".join(self._parts).decode())


@pytest.fixture
def tty(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


def shown_on(terminal: Terminal) -> Reporter:
    return Reporter(results=terminal.stream, lines=terminal.stream, display=lambda: reporter.terminal(terminal.stream))


def test_the_display_follows_the_tasks_and_leaves_nothing_behind(tty: Terminal) -> None:
    with reporter.use(shown_on(tty)) as shown:
        with shown.task("pretrain (1/2)", 2500, "steps", finish=False) as stage:
            stage.min_age, stage.detail = 0.0, lambda: "loss 2.31  step 12 ms"
            stage.advance(1204, "steps")
            shown.refresh()
            lines, cursor = tty.show()
            assert lines[0].startswith("pretrain (1/2)  ━━━") and "1,204 of 2,500 steps" in lines[0]
            assert lines[1:] == ["  loss 2.31  step 12 ms"] and not cursor
            with shown.task("evaluating [squad]", 40, "batches") as inner:
                inner.min_age = 0.0
                shown.say("a line [in brackets] above")
                shown.result("a result above")
                shown.refresh()
                lines, _ = tty.show()
                assert lines[:2] == ["a line [in brackets] above", "a result above"] and len(lines) == 5
                assert lines[-1].startswith("evaluating [squad]")
            stage.advance(1, "steps")
            shown.refresh()
            lines, _ = tty.show()
            assert len(lines) == 4 and "1,205 of" in lines[2], "the evaluation left no line"
    assert tty.show() == (["a line [in brackets] above", "a result above"], True)


def test_an_exception_and_a_sudden_end_restore_the_cursor(tty: Terminal, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt), reporter.use(shown_on(tty)) as shown, shown.task("a") as task:
        task.min_age = 0.0
        shown.refresh()
        assert tty.show()[1] is False
        raise KeyboardInterrupt
    assert tty.show() == ([], True) and shown.tasks == []
    with reporter.use(shown_on(tty)) as shown, shown.task("b") as task:
        task.min_age = 0.0
        shown.refresh()
        reporter.last_words("left at once")  # os._exit follows
        assert tty.show()[1] is True and capfd.readouterr().err == "left at once\n"


def test_no_terminal_no_display(monkeypatch: pytest.MonkeyPatch, tty: Terminal) -> None:
    assert reporter.terminal(tty.stream) is tty.stream and reporter.terminal(io.StringIO()) is None
    assert reporter.terminal(None) is None
    monkeypatch.setenv("TERM", "dumb")
    assert reporter.terminal(tty.stream) is None


# ---- train.log ------------------------------------------------------------------------------------------------------


def log_lines(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    for line in lines:
        assert datetime.fromisoformat(line.split(" ", 1)[0]).utcoffset() is not None
    return [line.split(" ", 1)[1] for line in lines]


def test_the_log_of_a_run_has_all_lines_warnings_and_the_end(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for attempt in (1, 2):
        with warnings.catch_warnings(), pytest.raises(DivergedError), run_log.report_run() as shown:
            warnings.simplefilter("always")
            shown.say("said before there was a folder")
            run_log.open_run_log(shown, tmp_path, 0)
            shown.result(f"pretrain {attempt}/2")
            warnings.warn("be careful", UserWarning, stacklevel=1)
            logging.getLogger("jax._src.xla_bridge").warning("No GPU found, %s", "falling back")
            raise DivergedError("the loss is not finite")
    first, *lines = log_lines(tmp_path / "train.log")
    assert first.startswith("bertjax ")
    expected = [
        "said before there was a folder", "pretrain 1/2", "warning: be careful (UserWarning, test_progress.py:",
        "warning: No GPU found, falling back", "the loss is not finite",
    ]  # fmt: skip
    assert len(lines) == 11 and all(map(str.startswith, lines, expected))
    assert capsys.readouterr().out == "pretrain 1/2\npretrain 2/2\n"


def test_another_process_logs_only_its_own_warnings(tmp_path: Path) -> None:
    with run_log.report_run() as shown:
        shown.quiet = True
        run_log.open_run_log(shown, tmp_path, 3)
        assert list(tmp_path.iterdir()) == []
        logging.getLogger("elsewhere").warning("slow disk")
    assert log_lines(tmp_path / "train.3.log") == ["warning: slow disk"]


def test_the_log_is_bounded_and_a_full_disk_is_no_error(tmp_path: Path) -> None:
    log = log_file.LogFile(tmp_path / "train.log", max_bytes=1000)
    for number in range(100):
        log.write(f"line {number}", time.time())
    assert {path.name for path in tmp_path.iterdir()} == {"train.log", "train.log.1"}
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert log_lines(tmp_path / "train.log")[-1] == "line 99"
    log_file.LogFile(tmp_path / "no folder" / "train.log").write("lost", time.time())


def test_lines_for_a_closed_standard_error_are_dropped(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.stderr", None)
    Reporter(display=lambda: None).say("note: x")
    assert capsys.readouterr().out == ""


def test_a_reader_that_is_gone_ends_nothing_that_outlives_it(tmp_path: Path) -> None:
    """As `| head` and a closed terminal leave a training run; the control is a command that ends then."""
    for outlives in (True, False):
        reader, writer = os.pipe()
        with os.fdopen(writer, "w") as stream:
            own = Reporter(results=stream)
            own.outlives_streams = outlives
            own.open_log(tmp_path / f"{outlives}.log")
            own.result("first")
            os.close(reader)
            if not outlives:
                with pytest.raises(BrokenPipeError):
                    own.result("second")
                reporter.discard(stream)
                continue
            own.result("second")
            own.result("third")
            assert os.fstat(writer).st_rdev == os.stat(os.devnull).st_rdev, "whoever else writes there is safe too"
    lines = [line.split(" ", 1)[1] for line in (tmp_path / "True.log").read_text().splitlines()]
    assert [line for line in lines if not line.endswith("goes on here")] == lines[:2] + lines[3:]
    assert "second" in lines[1] and "goes on here" in lines[2] and "third" in lines[3]


def test_a_terminal_that_is_closed_ends_no_training(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        own = Reporter(results=stream, lines=stream)
        own.outlives_streams = True
        own.open_log(tmp_path / "log")
        own.say("first")
        os.close(master)
        own.say("second")
        own.close()
    assert "goes on here" in (tmp_path / "log").read_text()
