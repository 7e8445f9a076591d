"""Start the compiling process with the environment its compilers need. No jax import."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bertjax.config.loading.error_messages import config_error
from bertjax.config.schema.run import Config
from bertjax.errors import UserError
from bertjax.parallel import mesh_shape
from bertjax.plan.topologies import Topology, check_installed, compiler_env, count_slices, parse
from bertjax.progress import reporter

DEFAULT_SWEEP_LIMIT = 24  # maximum number of programs that a sweep compiles


def plan_command(config: Config, arguments: argparse.Namespace) -> int:
    """Check everything that needs no jax, then compile -> exit code. Raises UserError."""
    topology = parse(arguments.topology, config.mesh.dcn)
    if config.mesh.dcn == -1:
        config = count_slices(config, topology)
        said = f"planned as mesh.dcn={config.mesh.dcn}, the slices of --topology {topology.name}"
        reporter.say(f"note: mesh.dcn: -1 is {said}; mesh.dcn=N plans another number")
    names = [stage.name for stage in config.stages]
    if arguments.stage not in (None, *names):
        raise UserError(f"--stage: {arguments.config} has no stage '{arguments.stage[:80]}'; it has {', '.join(names)}")
    if arguments.episode is not None and arguments.stage is None and len(names) > 1:
        raise UserError(f"--episode: name a --stage: {', '.join(names)}")
    if arguments.sweep and arguments.episode is not None:
        raise UserError("--sweep: uses the last episode; leave --episode out")
    if arguments.limit is not None and not arguments.sweep:
        raise UserError("--limit: needs --sweep")
    if not arguments.sweep:  # a sweep changes mesh and batch
        stages = [stage for stage in config.stages if arguments.stage in (None, stage.name)]
        if problems := mesh_shape.find_problems(config.mesh, stages, topology.size):
            raise config_error(problems)
    check_installed(topology)
    wanted = {name: getattr(arguments, name) for name in ("stage", "episode", "sweep", "json")}
    wanted["limit"] = arguments.limit or DEFAULT_SWEEP_LIMIT
    return compile_in_subprocess(config, arguments.config, topology, wanted)


def compile_in_subprocess(config: Config, name: str, topology: Topology, wanted: dict[str, Any]) -> int:
    """Run `python -m bertjax.plan` -> its exit code; its output is printed when it ends.

    `wanted`: stage, episode, sweep, limit, json. Raises UserError when a compiler kills the process.
    """
    request = {"config": config.model_dump(mode="json"), "name": name, "topology": topology.name, **wanted}
    package = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    own = os.environ | compiler_env(topology) | {"PYTHONPATH": paths}
    words = [sys.executable, "-P", "-m", "bertjax.plan"]
    reporter.current.close()  # the other process shows what it does
    done = subprocess.run(words, input=json.dumps(request), stdout=subprocess.PIPE, text=True, env=own)
    if done.returncode < 0 or done.returncode > 128:
        signal = -done.returncode if done.returncode < 0 else done.returncode - 128
        raise UserError(
            f"--topology {topology.name}: the compiler ended with signal {signal}; "
            "see its output above; try a smaller configuration, or more memory"
        )
    print(done.stdout, end="")
    return done.returncode
