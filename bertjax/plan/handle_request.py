"""Handle a request in the compiling process: plan stages, or sweep, and format the result as text or JSON."""

import json
from importlib import metadata
from typing import Any

from bertjax.config.loading.load import build
from bertjax.plan import report, topologies
from bertjax.plan.stages import Target, plan_stage
from bertjax.plan.sweep import format_sweep, sweep

_COMPILERS = {"tpu": ("libtpu",), "gpu": ("jax-cuda13-plugin", "jax-cuda12-plugin")}


def handle_request(request: dict[str, Any]) -> tuple[str, bool]:
    """-> (text to print, whether everything fits)."""
    config = build(request["config"], where=request["name"])
    topology = topologies.parse(request["topology"], config.mesh.dcn)
    target = Target(topologies.devices(topology), topology.chip)
    about = {
        "config": request["name"],
        "topology": topology.name,
        "devices": topology.size,
        "device_kind": target.devices[0].device_kind,
        "slices": topology.slices,
        "versions": _versions(topology.platform),
    }
    wanted = [stage for stage in config.stages if request["stage"] in (None, stage.name)]
    if request["sweep"]:
        found = about | sweep(config, wanted[0], target, request["limit"])
        return (json.dumps(found, indent=2) if request["json"] else format_sweep(found)), any(found["ranked"])
    stages = [plan_stage(config, stage, target, request["episode"]) for stage in wanted]
    plan = about | {"stages": stages}
    plan["verdict"] = report.verdict(plan)
    return (json.dumps(plan, indent=2) if request["json"] else report.format_text(plan)), report.all_fit(plan)


def _versions(platform: str) -> dict[str, str]:
    found = {"jax": metadata.version("jax")}
    for name in _COMPILERS.get(platform, ()):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
