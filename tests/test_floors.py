"""The house in floors: an arrow may only go down, and each heavy library is known on its own floor alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "bertjax"
FLOORS = [
    "config interrupts",
    "parallel",
    "data",
    "models interop",
    "losses objectives",
    "training",
    "evaluation",
    "plan",
    "verify",
    "cli command_table commands doctor demo",
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}
FREE = {"errors", "__init__", "__main__"}
# Library -> what may import it, as prefixes of paths in the package.
KNOWN_TO = {
    "jax": ("models", "interop", "parallel", "losses", "objectives", "training", "evaluation", "plan", "doctor"),
    "flax": ("models", "interop", "training", "evaluation"),
    "optax": ("training",),
    "orbax": ("training/checkpoint.py",),
    "grain": ("data",),
}
LAZY = {
    "grain", "transformers", "datasets", "tensorflow_datasets", "matplotlib", "torch", "wandb", "tensorboardX",
    "sacrebleu", "rouge_score",
}  # fmt: skip


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources() -> list[tuple[str, str]]:
    return [
        (path.relative_to(PACKAGE).as_posix(), name) for path in sorted(PACKAGE.rglob("*.py")) for name in imports(path)
    ]


def floor_of(name: str) -> int | None:
    return None if name in FREE else FLOOR[name]  # a new module needs a floor


def test_a_lower_floor_never_imports_a_higher_one():
    for path, name in sources():
        here = floor_of(path.split("/")[0].removesuffix(".py"))
        package, target = (name + "..").split(".")[:2]
        if package == "bertjax" and here is not None and target in {entry.stem for entry in PACKAGE.iterdir()}:
            there = floor_of(target)
            assert there is None or there <= here, f"{path} imports {name}"


def test_each_library_is_known_on_its_floor_alone():
    for path, name in sources():
        allowed = KNOWN_TO.get(name.split(".")[0])
        assert allowed is None or path.startswith(allowed), f"{path} imports {name}"


def test_heavy_libraries_wait_until_they_are_needed():
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            found = (
                {alias.name for alias in node.names}
                if isinstance(node, ast.Import)
                else {node.module if isinstance(node, ast.ImportFrom) else None}
            )
            assert not LAZY & {str(name).split(".")[0] for name in found}, f"{path.name}:{node.lineno}"


def test_the_floors_stand_for_what_is_there():
    assert len(sources()) > 100
    assert set(FLOOR) <= {path.stem for path in PACKAGE.iterdir()}
