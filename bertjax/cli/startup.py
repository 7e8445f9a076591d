"""What commands do first (select a device, load the configuration) and last (print a result)."""

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from bertjax.storage.locations import local_path

if TYPE_CHECKING:
    from bertjax.config.schema.run import Config

_PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}


def select_platform(arguments: argparse.Namespace) -> None:
    """Applies --device. Call it before importing a module that imports jax, which reads JAX_PLATFORMS then."""
    from bertjax.parallel.host_allocator import cpu_only, keep_freed_memory

    if arguments.device:
        os.environ["JAX_PLATFORMS"] = _PLATFORMS[arguments.device]
    if cpu_only():
        keep_freed_memory()


def require_device(arguments: argparse.Namespace) -> None:
    """`select_platform` for single-process commands; raises UserError at once when the device does not exist.

    Training looks for its devices itself, after `jax.distributed` is initialized. Commands without --device use
    JAX_PLATFORMS.
    """
    if hasattr(arguments, "device"):
        select_platform(arguments)
    from bertjax.parallel.mesh import all_devices

    all_devices()


def load_config(arguments: argparse.Namespace) -> "Config":
    from bertjax.config.loading.load import load

    return load(local_path(arguments.config), arguments.overrides)


def print_result(result: Any) -> int:
    """Prints text as it is and anything else as JSON -> exit code 0."""
    print(result if isinstance(result, str) else json.dumps(result, indent=2, ensure_ascii=False))
    return 0
