"""Before the first computation: do all processes run the same code on the same configuration and the same data?

One process with another seed or an older file would train something that nobody asked for, or hang all the others.
"""

import hashlib
import json
import platform
import socket
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import bertjax
from bertjax.config.loading.error_messages import mask_secrets
from bertjax.config.schema.run import Config
from bertjax.data.sources.registry import record_of
from bertjax.errors import UserError
from bertjax.parallel.multihost.primary import is_multiprocess, reduce_on_primary
from bertjax.storage.files import expand_globs
from bertjax.storage.nested import flatten

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
MAX_SHOWN_CHARS = 60  # characters of a value in a message


def check_start(config: Config, base: Path) -> None:
    """Raises UserError on every process when one differs in code, packages, configuration or files of data.

    Files count by name and size here: their content is compared when the data are open (`check_equal`). A collective:
    every process calls it, before any other.
    """
    if is_multiprocess():
        check_equal(_facts(config, base))


def check_equal(facts: Mapping[str, str]) -> None:
    """Raises UserError on every process when a fact of one is not what it is on process 0. Every process calls it."""
    if is_multiprocess():
        reduce_on_primary(json.dumps({"host": socket.gethostname(), "facts": dict(facts)}), raise_on_difference)


def raise_on_difference(messages: Iterable[str]) -> None:
    """Compares what the processes said, as JSON with host and facts. Raises UserError for the first that differs."""
    first, *others = (json.loads(each) for each in messages)
    for index, other in enumerate(others, 1):
        for what in sorted({*first["facts"], *other["facts"]}):
            here, there = (each["facts"].get(what, "nothing") for each in (first, other))
            if here != there:
                shown = ""
                if len(here) <= MAX_SHOWN_CHARS and len(there) <= MAX_SHOWN_CHARS:
                    shown = f": {there} instead of {here}"
                raise UserError(
                    f"process {index} ({other['host']}) and process 0 ({first['host']}) differ in {what}{shown}; "
                    "start every process with the same code, configuration and data"
                )


def code_versions() -> dict[str, str]:
    """The code that runs here: versions, and a digest of this package."""
    found = {"the version of bertjax": bertjax.__version__, "the code of bertjax": package_hash()[:12]}
    found |= {f"the version of {name}": metadata.version(name) for name in PACKAGES}
    return found | {"the version of Python": ".".join(platform.python_version_tuple()[:2])}


def _facts(config: Config, base: Path) -> dict[str, str]:
    found = code_versions()
    options = flatten(mask_secrets(config.model_dump(mode="json")))
    found |= {f"the configuration, {key}": _shorten(value) for key, value in options.items()}
    return found | data_file_digests(config, base)


def _shorten(value: Any) -> str:
    """The value as text, a long one as its digest."""
    text = str(value)
    return text if len(text) <= 200 else hashlib.sha256(text.encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def package_hash() -> str:
    """sha256 over the modules of this package."""
    digest, home = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(home.rglob("*.py")):
        digest.update(path.relative_to(home).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def data_file_digests(config: Config, base: Path) -> dict[str, str]:
    """What the tasks and evaluations find of their files: names and sizes, as one digest each."""
    tasks = {f"task '{name}'": task for stage in config.stages for name, task in config.stage_tasks(stage).items()}
    tasks |= {f"evaluation '{e.name}' of '{s.name}'": e.data for s in config.stages for e in s.evaluate}
    found = {}
    for name, task in tasks.items():
        patterns = [pattern for source in task.source for pattern in record_of(source).files(source)]
        if patterns:
            found[f"the files of {name}"] = _listing(patterns, base)
    return found


def _listing(patterns: list[str], base: Path) -> str:
    try:
        there = [(path.name, path.stat().st_size) for path in expand_globs(patterns, base)]
    except (OSError, UserError):
        return "missing, or no use"  # on all processes: the reader reports what is wrong
    return f"{len(there)} files, {hashlib.sha256(repr(there).encode()).hexdigest()[:12]}"
