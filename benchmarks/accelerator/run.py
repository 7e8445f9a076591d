"""The command of gpu.py and tpu.py: all parts in order within a time budget; results are rewritten after each part."""

import argparse
import json
import os
import platform as machine
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from step_worker import SHAPES
from t5_sides import SHAPES as T5_SHAPES

from accelerator import steps
from accelerator.budget import Budget
from accelerator.cases import OURS, SIDES, Part, list_parts
from accelerator.processes import FOLDER, environment, run_script

KINDS = ("steps", "kernels", "fp8", "decode", "flags")
MINUTES = {"gpu": 9.0, "tpu": 45.0}


def make_parser(target: str, doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=(target, "cpu"), default=target)
    parser.add_argument("--minutes", type=float, default=MINUTES[target], help="for everything; the rest is left out")
    parser.add_argument("--shapes", help="of step_worker.py and t5_sides.py, with their own rows")
    parser.add_argument("--parts", default=",".join(KINDS[:-1]), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--sides", help=f"of part steps, of {', '.join(SIDES)}; default: all that fit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="steps between two looks at the clock")
    parser.add_argument("--scale", type=int, default=1, help="multiplies the rows of a batch")
    parser.add_argument("--parity-steps", type=int, default=500, help="steps of the two trainings of part fp8")
    parser.add_argument("--ablate-flags", action="store_true", help="also part flags: each XLA flag changed")
    parser.add_argument("--output", type=Path, help=f"default on the device: results/{target}.json")
    return parser


def check_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Exit with code 2 and one line for an unknown name or a number that is too small."""
    known = {"shapes": [*SHAPES, *T5_SHAPES], "parts": list(KINDS), "sides": list(SIDES)}
    for option, names in known.items():
        given = getattr(arguments, option)
        if given is not None and (other := [name for name in given.split(",") if name not in names]):
            fail(parser, f"--{option}: no '{other[0]}'; there are: {', '.join(names)}")
    for option, least in (("rounds", 1), ("steps", 1), ("scale", 1), ("parity_steps", 1)):
        if getattr(arguments, option) < least:
            fail(parser, f"--{option.replace('_', '-')}: at least {least}")
    if not 0 <= arguments.minutes < 1e6:
        fail(parser, "--minutes: a number of minutes, 0 or more")


def fail(parser: argparse.ArgumentParser, reason: str) -> None:
    print(f"benchmarks/{parser.prog}: {reason}", file=sys.stderr)
    sys.exit(2)


def refuse_without(target: str, parser: argparse.ArgumentParser) -> None:
    check = [sys.executable, "-c", f"import jax; assert jax.devices()[0].platform == {target!r}"]
    if subprocess.run(check, env=environment(target), capture_output=True, check=False).returncode:
        names = "tiny512,t5_tiny"
        fail(parser, f"jax finds no {target.upper()} here; --device cpu --shapes {names} tries the code")


class Call:
    """One call of the command: what it measured and left out so far, in `report`."""

    def __init__(self, target: str, arguments: argparse.Namespace):
        self.target, self.arguments, self.platform = target, arguments, arguments.device
        self.budget = Budget(arguments.minutes)
        self.output = arguments.output
        if self.output is None and arguments.device == target:
            self.output = FOLDER / "results" / f"{target}.json"
        self.report: dict[str, Any] = {
            "target": target,
            "device": None,
            "versions": {},
            "python": machine.python_version(),
            "date": date.today().isoformat(),
            "minutes": arguments.minutes,
            "environment": {k: os.environ[k] for k in ("XLA_FLAGS", "LIBTPU_INIT_ARGS") if k in os.environ},
            "parts": [],
            "left_out": [],
        }

    def parts(self) -> list[Part]:
        shapes, kinds = self.arguments.shapes, set(self.arguments.parts.split(","))
        if self.arguments.ablate_flags:
            kinds.add("flags")
        found = list_parts(self.target, shapes.split(",") if shapes else None, self.platform == "cpu")
        bert = [part for part in found if part.name == "fp8"]
        found += [Part("flags", "flags", bert[0].shape, bert[0].rows // 2, seconds=120)] if bert else []
        return [part for part in found if ("fp8" if part.name.startswith("fp8") else part.kind) in kinds]

    def run(self) -> None:
        for part in self.parts():
            if not self.budget.fits(part.seconds):
                wanted, left = self.budget.expect(part.seconds), max(0.0, self.budget.left())
                reason = f"needs about {wanted:.0f} s and {left:.0f} s of --minutes {self.arguments.minutes:g} are left"
                self.report["left_out"].append({"part": part.name, "reason": reason})
                print(json.dumps({"left_out": part.name, "reason": reason}), flush=True)
                continue
            began = time.monotonic()
            found = {"part": part.name} | self.measure(part)
            found["seconds"] = round(time.monotonic() - began, 1)
            self.budget.finished(part.seconds, found["seconds"])
            self.note(found)
        self.report["seconds"] = round(self.budget.used(), 1)
        self.write()

    def note(self, found: dict[str, Any]) -> None:
        """Add a part's results; device and versions, the same for all, go to the head of the report."""
        self.report["versions"] |= found.pop("versions", {})
        for key in ("device", "devices"):
            value = found.pop(key, None)
            self.report[key] = self.report.get(key) or value
        self.report["parts"].append(found)
        self.write()
        print(json.dumps(found), flush=True)

    def write(self) -> None:
        if self.output is None:
            return
        self.output.parent.mkdir(parents=True, exist_ok=True)
        partial = self.output.with_name(self.output.name + ".partial")
        partial.write_text(json.dumps(self.report, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.output)

    def measure(self, part: Part) -> dict[str, Any]:
        run = {"steps": self.steps, "flags": self.flags}.get(part.kind, self.script)
        return run(part)

    def options(self) -> dict[str, Any]:
        """What all comparisons of steps have in common: on a TPU one process after another, or they wait for it."""
        one = self.arguments
        return {
            "rounds": one.rounds, "steps": one.steps, "platform": self.platform, "together": self.platform != "tpu",
            "budget": self.budget,
        }  # fmt: skip

    def steps(self, part: Part) -> dict[str, Any]:
        given = self.arguments.sides if part.name != "fp8" else None
        chosen = given.split(",") if given else part.sides
        unfit = {"cudnn": "gpu", "splash": "tpu"}
        names, left_out = [], {}
        for name in chosen:
            needs = next((platform for kernel, platform in unfit.items() if name.startswith(kernel)), self.platform)
            if needs != self.platform:
                left_out[name] = {"failed": f"{name.partition('_')[0]} does not run on {self.platform}"}
            elif part.packed > 1 and SIDES[name][0] == "torch":
                left_out[name] = {"failed": "transformers' BERT has no packed rows"}
            elif part.is_t5 and (name.endswith("nodrop") or name.startswith(("cudnn", "splash"))):
                left_out[name] = {"failed": "for BERT only"}
            else:
                names.append(name)
        scaled = Part(part.name, part.kind, part.shape, part.row_count * self.arguments.scale, part.sides, part.packed)
        found = steps.measure(scaled, names, **self.options())
        found["sides"] |= left_out
        return found

    def script(self, part: Part) -> dict[str, Any]:
        """A part that is a script of its own: what it printed, and why it ended early."""
        make = {"kernels": self.kernel_words, "parity": self.parity_words, "decode": self.decode_words}[part.kind]
        words = [str(word) for word in make(part)]
        lines, failed = run_script(words, environment(self.platform), self.budget.left())
        found: dict[str, Any] = {"shape": part.shape, "results": lines} | ({"failed": failed} if failed else {})
        for line in lines:
            for key in ("python", "date"):
                line.pop(key, None)
            found |= {key: line.pop(key) for key in ("versions", "device") if key in line}
        return found

    def kernel_words(self, part: Part) -> list[Any]:
        _, hidden, heads, _, length, _ = SHAPES[part.shape]
        numbers = (part.row_count, length, heads, hidden // heads, self.arguments.rounds, self.arguments.steps)
        return [FOLDER / "accelerator" / "kernels.py", self.platform, *numbers]

    def parity_words(self, part: Part) -> list[Any]:
        return [FOLDER / "accelerator" / "parity.py", part.shape, part.row_count, self.arguments.parity_steps]

    def decode_words(self, part: Part) -> list[Any]:
        torch = "cuda" if self.platform == "gpu" else "cpu"
        words = [FOLDER / "decode.py", "--shapes", part.shape, "--torch-device", torch]
        if self.platform == "cpu":
            words += ["--inputs", 16, "--tokens", 4]
        return [*words, "--rounds", self.arguments.rounds]

    def flags(self, part: Part) -> dict[str, Any]:
        """The step with our XLA flags, and with each of them changed; see bertjax/parallel/xla_flags.py."""
        from bertjax.parallel.xla_flags import FLAGS

        flags = [flag for flag in FLAGS if flag.platform == self.target]
        side = OURS[self.target][-1] if self.platform == self.target else "xla_nodrop"
        environments = {"as_set": {}} | {f"{flag.name}={flag.other}": flag.environment() for flag in flags}
        options = self.options() | {"together": self.platform == "gpu"}  # all at once are too many for a small machine
        found = steps.measure(part, list(environments), environments=environments, side_of=lambda name: side, **options)
        ms = {name: one.get("median_ms") for name, one in found["sides"].items()}
        base = ms.pop("as_set")
        found["ratios"] = {f"{name}_over_as_set": round(x / base, 3) for name, x in ms.items() if x and base}
        return {"side": side} | found


def main(target: str, doc: str) -> None:
    parser = make_parser(target, doc)
    arguments = parser.parse_args()
    check_arguments(parser, arguments)
    if arguments.device == target:
        refuse_without(target, parser)
    Call(target, arguments).run()
