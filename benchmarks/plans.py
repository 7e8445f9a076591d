"""The table in docs/results/plans.md: BERT and T5 on TPU pods and GPUs, compiled ahead of time. Nothing is measured.

    python benchmarks/plans.py                     # compile what results/plans.json lacks, then print the table
    python benchmarks/plans.py --only t5-3b,v5e:8x8    # rerun the rows whose name or command contains all words
    python benchmarks/plans.py --table             # the table of what is there; compiles nothing

Each row is one `bertjax plan` command, which the file holds. Rows of a model have the same rows on each device, so that
8, 64 and 256 chips of v5e are its weak scaling. Needs libtpu for TPUs and jax[cuda13] for GPUs; rows whose compiler is
missing are left out.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "plans.json"
DEVICES = {"v5e:2x4": 8, "v5e:8x8": 64, "v5e:16x16": 256, "v5p:4x4x4": 64, "h100:8": 8}
GIB = 2**30


@dataclass(frozen=True)
class Subject:
    """A model's row of the table: its configuration, and how many rows of a batch each device has."""

    config: str
    stage: str
    rows: int
    options: tuple[str, ...] = ()
    on: Mapping[str, tuple[str, ...]] | None = None  # more options on a topology


SCANNED = {"h100:8": ("run.segments=scan",)}  # as TPUs do by default: 24 layers written out compile for half an hour
SUBJECTS = {
    "BERT-base": Subject("configs/bert/pretrain_base.yaml", "pretrain128", 32),
    "BERT-large": Subject("configs/bert/pretrain_large.yaml", "pretrain512", 8),
    "T5-small": Subject("configs/t5/pretrain_small.yaml", "pretrain", 16),
    "T5-base": Subject("configs/t5/pretrain_base.yaml", "pretrain", 16),
    "T5-large": Subject("configs/t5/pretrain_large.yaml", "pretrain", 8, ("run.remat=dots",), SCANNED),
    "T5-3b": Subject("configs/t5/pretrain_3b.yaml", "pretrain", 8, (), SCANNED),
    "T5-11b": Subject("configs/t5/pretrain_11b.yaml", "pretrain", 8, (), SCANNED),
}


def command(name: str, topology: str) -> list[str]:
    """The words of a row's command, `bertjax` first."""
    subject = SUBJECTS[name]
    rows = f"stages.{subject.stage}.batch_size={subject.rows * DEVICES[topology]}"
    more = [*subject.options, *(subject.on or {}).get(topology, ())]
    if topology.startswith("v"):
        more.append("run.attention=xla")  # the same on all chips: `auto` has a fused kernel on TPUs alone
    alone = f"stages.{subject.stage}.evaluate=[]"
    return ["bertjax", "plan", subject.config, "--topology", topology, "--stage", subject.stage, rows, alone, *more]


def compiled(words: Sequence[str]) -> dict[str, Any]:
    """What a row's command says, of which the table is made. Raises RuntimeError with the command's own line."""
    run = [sys.executable, "-P", "-m", *words, "--json"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    plan = json.loads(done.stdout)
    (stage,) = plan["stages"]
    kept = ("fits", "reason", "mesh", "remat", "compile_seconds", "memory", "roofline", "collectives", "attention")
    found = {key: stage[key] for key in kept if key in stage}
    return {"versions": plan["versions"], "date": date.today().isoformat(), **found}


def has_compiler(topology: str) -> bool:
    names = ["libtpu"] if topology.startswith("v") else ["jax_cuda13_plugin", "jax_cuda12_plugin"]
    return any(importlib.util.find_spec(name) for name in names)


# ---- the table ------------------------------------------------------------------------------------------------------


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row for each model and topology that was compiled."""
    lines = [
        "| model | on | mesh | rows | GiB of GiB | step, ms | MFU | collectives |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in SUBJECTS:
        lines += [
            _row(name, topology, found[f"{name} {topology}"]) for topology in DEVICES if f"{name} {topology}" in found
        ]
    return "\n".join(lines)


def _row(name: str, topology: str, one: Mapping[str, Any]) -> str:
    mesh = " ".join(f"{axis}={size}" for axis, size in one["mesh"].items() if size > 1)
    remat = f", remat {one['remat']}" if one["remat"] != "none" else ""
    head = f"| {name} | {topology} | {mesh}{remat} | {SUBJECTS[name].rows}"
    memory, roof = one["memory"], one.get("roofline")
    if not one["fits"]:
        needs = f"{memory['total'] / GIB:.1f}" if memory["total"] else "more"
        return f"{head} | **{needs}** of {memory['usable'] / GIB:.0f} | does not fit | | |"
    assert roof is not None
    share = roof["collectives"] / roof["step"]
    used = f"{memory['total'] / GIB:.1f} of {memory['usable'] / GIB:.0f}"
    times = f"{_ms(roof['best'])} - {_ms(roof['step'])}"
    best = roof["mfu"] * roof["step"] / roof["best"]
    return f"{head} | {used} | {times} | {best:.0%} - {roof['mfu']:.0%} | {share:.0%} |"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.1f}"


def scaling(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: tokens a second and chip of v5e, of those on the fewest chips."""
    lines = ["| model | v5e:2x4 | v5e:8x8 | v5e:16x16 |", "|---|---|---|---|"]
    for name in SUBJECTS:
        pods = [found.get(f"{name} {topology}") for topology in ("v5e:2x4", "v5e:8x8", "v5e:16x16")]
        roofs = [one["roofline"] if one and one["fits"] else None for one in pods]
        first = next((roof for roof in roofs if roof), None)
        if first:
            cells = [_kept(first, roof) if roof else "does not fit" for roof in roofs]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _kept(first: Mapping[str, float], now: Mapping[str, float]) -> str:
    return f"{first['best'] / now['best']:.0%} - {first['step'] / now['step']:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="comma-separated words: rerun the rows that contain all of them")
    parser.add_argument("--table", action="store_true", help="print the table; compile nothing")
    options = parser.parse_args()
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for topology in [] if options.table else DEVICES:
        for name in SUBJECTS:
            words, key = command(name, topology), f"{name} {topology}"
            spelled = " ".join(words)
            wanted = (
                all(w in f"{key} {spelled}" for w in options.only.split(","))
                if options.only
                else (found.get(key, {}).get("command") != spelled)
            )
            if not wanted or not has_compiler(topology):
                continue
            print(spelled, file=sys.stderr, flush=True)
            found[key] = {"command": spelled, **compiled(words)}
            ordered = {f"{n} {t}": found[f"{n} {t}"] for n in SUBJECTS for t in DEVICES if f"{n} {t}" in found}
            RESULTS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    print(table(found), scaling(found), sep="\n\n")


if __name__ == "__main__":
    main()
