"""`bertjax doctor`: check that this machine can run bertjax; every problem comes with a remedy."""

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

OPTIONAL = {  # module: (extra that installs it, purpose)
    "sacrebleu": ("eval", "BLEU"),
    "rouge_score": ("eval", "ROUGE"),
    "tensorboardX": ("tensorboard", "TensorBoard logs"),
    "wandb": ("wandb", "Weights & Biases logs"),
    "gcsfs": ("gcs", "gs:// paths"),
}
MIN_FREE_DISK_BYTES = 2e9  # bytes: a base model with its optimizer is 1.3 GB a checkpoint
MAX_COMPILE_SECONDS = 30.0

Finding = tuple[str, str, str | None]  # label, finding, and the remedy of a problem


def doctor() -> tuple[list[str], bool]:
    """-> (lines to print, whether all required checks pass). A check that raises becomes a line."""
    lines, ok = [], True
    for check in (_python, _packages, _extras, _devices, _compute, _disk):
        for label, finding, remedy in _run_check(check):
            lines += _lines(label, finding, remedy)
            ok = ok and remedy is None
    return [*lines, _verdict(ok)], ok


def doctor_cluster() -> tuple[list[str], bool]:
    """Checks of all processes of a job; every process calls it, and only process 0 gets lines to print.

    Raises the errors of `initialize_distributed` when the processes cannot connect.
    """
    from bertjax.parallel.multihost import initialize, primary
    from bertjax.parallel.multihost.exit_together import exit_together

    with exit_together():
        initialize.initialize_distributed()
        lines, ok = doctor()
        from bertjax.tools.cluster_check import check_cluster

        checks = check_cluster([line[4:] for line in lines if line.startswith("BAD ")])
    ok = ok and all(remedy is None for _, _, remedy in checks)
    shown = [line for check in checks for line in _lines(*check)]
    return ([*lines[:-1], *shown, _verdict(ok)] if primary.is_primary() else []), ok


def _lines(label: str, finding: str, remedy: str | None) -> list[str]:
    if remedy is None:
        return [f"ok  {label:<20}{finding}"]
    return [f"BAD {label:<20}{finding}", f"    -> {remedy}"]


def _verdict(ok: bool) -> str:
    return "ready" if ok else "not ready: see the lines marked BAD"


def _run_check(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # any failure is a finding here
        text = str(error).splitlines()[0][:160] if str(error) else ""
        finding = f"{type(error).__name__}: {text}"
        yield check.__name__.strip("_"), finding, "fix this first; JAX_PLATFORMS=cpu skips the accelerator"


def _python() -> Iterator[Finding]:
    remedy = None if sys.version_info >= (3, 11) else "install Python 3.11 or newer"
    yield "python", f"{platform.python_version()} on {platform.platform(terse=True)}", remedy


def requirements() -> list[Requirement]:
    """The dependencies that this installation of bertjax declares for this Python, extras excluded."""
    found: dict[str, Requirement] = {}
    for one in map(Requirement, metadata.requires("bertjax") or ()):
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            if one.name in found:
                one.specifier &= found[one.name].specifier
            found[one.name] = one
    return list(found.values())


def _packages() -> Iterator[Finding]:
    try:
        wanted = requirements()
    except metadata.PackageNotFoundError:
        yield "bertjax", "not installed, run from its source: packages are not checked", None
        return
    for requirement in wanted:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield requirement.name, "missing", f"pip install '{requirement.name}{requirement.specifier}'"
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        finding = version if fits else f"{version}, needs {requirement.specifier}"
        yield requirement.name, finding, None if fits else f"pip install '{requirement.name}{requirement.specifier}'"


def _extras() -> Iterator[Finding]:
    for module, (extra, purpose) in OPTIONAL.items():
        yield module, "present" if find_spec(module) else f"not installed; bertjax[{extra}] adds {purpose}", None


def _devices() -> Iterator[Finding]:
    import jax

    from bertjax.parallel.mesh import all_devices

    devices = all_devices()
    yield "devices", f"{len(devices)} x {devices[0].device_kind} ({jax.default_backend()})", _unused_accelerator()
    for device in jax.local_devices()[:8]:
        limit = (device.memory_stats() or {}).get("bytes_limit")
        if limit:
            yield f"memory {device.id}", f"{limit / 2**30:.1f} GiB", None
    if hasattr(os, "sysconf"):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield "host memory", f"{total / 2**30:.1f} GiB, {os.cpu_count()} cores", None


def _unused_accelerator() -> str | None:
    """The remedy where the machine has an accelerator, JAX was not told to leave it alone, and JAX runs on the CPU."""
    import jax

    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS"):
        return None
    if Path("/proc/driver/nvidia/version").exists():
        return "this machine has an NVIDIA GPU that JAX does not use: pip install 'bertjax[cuda13]' (or cuda12)"
    if Path("/dev/accel0").exists() or (Path("/dev/vfio/0").exists() and os.environ.get("TPU_WORKER_ID")):
        return "this machine has a TPU that JAX does not use: pip install 'bertjax[tpu]'"
    return None


def _compute() -> Iterator[Finding]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    x_MN = np.arange(12, dtype=np.float32).reshape(3, 4)
    product = np.asarray(jnp.matmul(x_MN, x_MN.T, precision="highest"))
    wrong = None if np.allclose(product, x_MN @ x_MN.T) else "driver and jaxlib are incompatible"
    yield "matmul", "right" if wrong is None else "wrong numbers", wrong
    start = time.perf_counter()
    jax.jit(lambda x: jnp.tanh(x).sum())(x_MN).block_until_ready()
    seconds = time.perf_counter() - start
    slow = None if seconds < MAX_COMPILE_SECONDS else "the machine is overloaded, or the driver is broken"
    yield "jit compile", f"{seconds:.2f} s", slow


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(".").free
    remedy = None if free >= MIN_FREE_DISK_BYTES else "free some space, or set run.root to a larger disk"
    yield "disk", f"{free / 1e9:.1f} GB free in the current folder", remedy
    try:
        with tempfile.TemporaryFile(dir="."):
            yield "write access", "yes", None
    except OSError as error:
        yield "write access", f"no ({error.strerror})", "run from a folder you may write to, or set run.root"
