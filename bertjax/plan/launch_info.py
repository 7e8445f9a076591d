"""What can be known of a configuration on TPU slices without compiling it; nothing here imports jax.

`launch/tpu.py` asks, before it calls for machines, and `bertjax plan`, before it compiles.
"""

from typing import Any

from bertjax.config.loading import input_paths
from bertjax.config.schema.run import Config
from bertjax.parallel import mesh_shape


def launch_info(config: Config, devices: int, slices: int) -> dict[str, Any]:
    """For a launcher: `problems` (a line each), `root` (run.root) and `paths` ([key, path] of what is read)."""
    problems = mesh_shape.find_problems(config.mesh, config.stages, devices, slices)
    if config.run.attention == "cudnn":
        problems.append("run.attention: cudnn is for GPUs; use auto, splash or xla")
    return {"problems": problems, "root": config.run.root, "paths": list(input_paths.input_paths(config))}
