"""Runs the parsers of fuzz_targets.py on input changed by chance, in a process with limits of memory and time.

    python fuzz_child.py COUNT SEED [TARGET ...]

Prints a line of JSON for each target: {"target", "tried", "refused", "seconds", "peak_mb", "failure"}. An input is
read, or refused with one line of a BertjaxError; anything else is a failure, with the input that hypothesis found to be
the smallest.
"""

import copy
import json
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from fuzz_targets import TARGETS
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from peak_memory import peak_mb

from bertjax.errors import BertjaxError, escape_surrogates

MEMORY = 2 << 30  # bytes of data
SECONDS = 10  # of computing, for one input
WALL_SECONDS = 300  # in all, for what waits without computing; a machine with other work is slow
_WORDS = (
    rb'| |"|{|[|]|}|:|,|\|'
    rb"'|1e400|-1|1e30|NaN|null|true|\ud83d|\u0000|*a|&a |!!python/object/apply:os.system|<<: |"
    rb"~|..|extends: c.yaml|%|#|- |?|>"
)
NASTY_BYTES = [
    *_WORDS.split(b"|"),
    *(b"\0", b"|", b"\r", b"\n\n", b"\t", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc2\xb2", b"\xe2\x80\xa8", b"\x1b[2J"),
    *(b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"{" * 3000, b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"." * 3000),
]
NASTY_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", " ", "a", "\0", "\ud83d", "a\nb", "9" * 5000, "\u00b2", "x" * 5000, "(a+)+$", "(", "[UNK]"),
    *([], {}, [[]], {"a": {}}, [None], ["a"], [1], {"": 0}, {"kind": "text"}, {"type": "x"}),
]
DEEP = "[" * 300 + "]" * 300


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        stop = min(len(content), at + draw(st.sampled_from([0, 0, 1, 2, 8, 64, 1 << 20])))
        put = draw(st.one_of(st.sampled_from(NASTY_BYTES), st.binary(max_size=4)))
        if draw(st.integers(0, 9)) == 0:
            put += content[at : at + 64] * draw(st.sampled_from([1, 2, 50]))
        content = content[:at] + put + content[stop:]
    return content


def places(value: Any, path: tuple = ()) -> list[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in items for found in places(item, (*path, key)))]


@st.composite
def changed_json(draw: st.DrawFn, content: bytes) -> bytes:
    """The values of JSON, or of JSON lines, replaced, removed or added."""
    is_lines = content.count(b"\n") > 0 and content.endswith(b"\n")
    value = [json.loads(line) for line in content.splitlines()] if is_lines else json.loads(content)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from(places(value)[1:] or [(None,)]))
        target = value
        for key in above:
            target = target[key]
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "deep"]))
        if last is None or how == "remove":
            if last is not None:
                del target[last]
        elif how == "deep":
            target[last] = json.loads(DEEP)
        else:
            picked = copy.deepcopy(draw(st.sampled_from(NASTY_VALUES)))  # a later change may be inside
            if how == "add" and isinstance(target, dict):
                target[draw(st.sampled_from(["", "\ud83d", "a\nb", "id", "x" * 300]))] = picked
            else:
                target[last] = picked
    return lines_or_one(value, is_lines)


def lines_or_one(value: Any, is_lines: bool) -> bytes:
    if is_lines:
        return "".join(json.dumps(line) + "\n" for line in value).encode()
    return json.dumps(value).encode()


def is_json(content: bytes) -> bool:
    try:
        [json.loads(line) for line in content.splitlines()]
    except ValueError:
        return False
    return True


def changed(content: bytes) -> st.SearchStrategy[bytes]:
    bytes_only = changed_bytes(content)
    return st.one_of(changed_json(content), changed_json(content), bytes_only) if is_json(content) else bytes_only


class Timeout(BaseException):
    """An input took longer than SECONDS."""


def _alarm(*_: Any) -> None:
    raise Timeout


def try_input(target: str, folder: Path, name: str, content: bytes) -> bool:
    """Whether the input was refused. Raises what is a failure."""
    read, files = TARGETS[target]
    for other, usual in files.items():
        path = folder / other
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if other == name else usual)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WALL_SECONDS)
    try:
        read(folder)
    except BertjaxError as error:
        lines = escape_surrogates(str(error)).split("\n")
        limit = 1 if target not in ("config", "overrides", "metadata") else 25  # a line for each problem
        assert len(lines) <= limit and all(len(line) < 1000 for line in lines), f"not one line: {error!s:.2000}"
        assert type(error).exit_code in (2, 4) and str(error).strip()
        return True
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    return False


def run(target: str, count: int, number: int) -> dict[str, Any]:
    found: dict[str, Any] = {"target": target, "tried": 0, "refused": 0, "failure": None}
    folder = Path(tempfile.mkdtemp())
    files = [name for name in TARGETS[target][1] if name != "fixed.yaml"]
    inputs = st.sampled_from(files).flatmap(
        lambda name: st.tuples(st.just(name), changed(TARGETS[target][1][name]))
    )  # fmt: skip
    last: list[Any] = []
    started = time.monotonic()

    @seed(number)
    @settings(
        max_examples=max(count, 1), database=None, deadline=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    @given(inputs)
    def check(picked: tuple[str, bytes]) -> None:
        last[:] = picked
        found["tried"] += 1
        found["refused"] += try_input(target, folder, *picked)

    try:
        assert not try_input(target, folder, "", b""), "the valid input is refused"
        if count:
            check()
    except BaseException as error:  # a panic of a Rust library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-3:]]
        found["failure"] = [type(error).__name__, str(error)[:1500], frames, *map(repr, last)]
        found["failure"] = [str(part)[:3000] for part in found["failure"]]
    finally:
        shutil.rmtree(folder)
    found["seconds"] = round(time.monotonic() - started, 2)
    found["peak_mb"] = peak_mb()
    return found


def main() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _alarm)
    signal.signal(signal.SIGPROF, _alarm)
    count, number, *names = sys.argv[1:]
    for target in names or TARGETS:
        print(json.dumps({"target": target, "begins": True}), flush=True)  # names the one that ends the process
        print(json.dumps(run(target, int(count), int(number))), flush=True)


if __name__ == "__main__":
    main()
