"""Check before the first computation that all processes have the same code, configuration and data."""

import hashlib
import json
import platform
import socket
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import bertjax
from bertjax.config.loading import plugins
from bertjax.config.loading.error_messages import mask_secrets
from bertjax.config.schema.run import Config
from bertjax.data.sources.registry import record_of
from bertjax.errors import UserError
from bertjax.parallel.multihost.primary import is_multiprocess, reduce_on_primary
from bertjax.storage.files import expand_globs
from bertjax.storage.nested import flatten

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
MAX_SHOWN_CHARS = 60  # characters of a value in a message


def check_start(config: Config, base: Path) -> None:
    """Raise UserError on every process if one differs in code, configuration, or names or sizes of data files.

    Every process calls it, before any other collective. `check_equal` compares the contents once the data are open.
    """
    if is_multiprocess():
        check_equal(_facts(config, base))


def check_equal(facts: Mapping[str, str]) -> None:
    """Raise UserError on every process if a fact of one differs from that of process 0. Every process calls it."""
    if is_multiprocess():
        reduce_on_primary(json.dumps({"host": socket.gethostname(), "facts": dict(facts)}), raise_on_difference)


def raise_on_difference(messages: Iterable[str]) -> None:
    """Compare the processes' messages (JSON with host and facts); raise UserError for the first difference."""
    first, *others = (json.loads(each) for each in messages)
    for index, other in enumerate(others, 1):
        for what in sorted({*first["facts"], *other["facts"]}):
            here, there = (each["facts"].get(what, "nothing") for each in (first, other))
            if here != there:
                short = max(len(here), len(there)) <= MAX_SHOWN_CHARS
                shown = f": {there} instead of {here}" if short else ""
                raise UserError(
                    f"process {index} ({other['host']}) and process 0 ({first['host']}) differ in {what}{shown}; "
                    "start every process with the same code, configuration and data"
                )


def code_versions() -> dict[str, str]:
    """Versions of this package, its dependencies and Python, and a digest of this package's code."""
    found = {"the version of bertjax": bertjax.__version__, "the code of bertjax": package_hash()[:12]}
    found |= {f"the version of {name}": metadata.version(name) for name in PACKAGES}
    return found | {"the version of Python": ".".join(platform.python_version_tuple()[:2])}


def _facts(config: Config, base: Path) -> dict[str, str]:
    shown = {key: str(value) for key, value in flatten(mask_secrets(config.model_dump(mode="json"))).items()}
    shorten = lambda text: text if len(text) <= 200 else hashlib.sha256(text.encode()).hexdigest()[:12]  # noqa: E731
    options = {f"the configuration, {key}": shorten(value) for key, value in shown.items()}
    code = {f"the plugin {name}": digest[:12] for name, digest in plugins.digests(config.plugins).items()}
    return code_versions() | code | options | data_file_digests(config, base)


@lru_cache(maxsize=1)
def package_hash() -> str:
    """Sha256 over the modules of this package."""
    digest, home = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(home.rglob("*.py")):
        digest.update(path.relative_to(home).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def data_file_digests(config: Config, base: Path) -> dict[str, str]:
    """A digest of the file names and sizes of each task and evaluation."""
    tasks = {f"task '{name}'": task for stage in config.stages for name, task in config.stage_tasks(stage).items()}
    tasks |= {f"evaluation '{e.name}' of '{s.name}'": e.data for s in config.stages for e in s.evaluate}
    found = {}
    for name, task in tasks.items():
        patterns = [pattern for source in task.source for pattern in record_of(source).files(source)]
        if not patterns:
            continue
        try:
            there = [(path.name, path.stat().st_size) for path in expand_globs(patterns, base)]
            listing = f"{len(there)} files, {hashlib.sha256(repr(there).encode()).hexdigest()[:12]}"
        except (OSError, UserError):
            listing = "missing, or no use"  # if on all processes, the reader reports what is wrong
        found[f"the files of {name}"] = listing
    return found
