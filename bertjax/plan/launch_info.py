"""Facts about a configuration on TPU slices that `launch/tpu.py` checks before it creates machines. No jax import."""

from typing import Any

from bertjax.config.loading import input_paths
from bertjax.config.schema.run import Config
from bertjax.parallel import mesh_shape


def launch_info(config: Config, devices: int, slices: int) -> dict[str, Any]:
    """-> `problems` (one line each), `root` and `name` (run.root, run.name) and `paths` ([key, path] of inputs)."""
    problems = mesh_shape.find_problems(config.mesh, config.stages, devices, slices)
    if config.run.attention == "cudnn":
        problems.append("run.attention: cudnn is for GPUs; use auto, splash, fused or xla")
    paths = list(input_paths.input_paths(config))
    return {"problems": problems, "root": config.run.root, "name": config.run.name, "paths": paths}
