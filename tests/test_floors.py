"""Layers of the package and its sub-packages: imports point down, and heavy libraries stay in their layer."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "bertjax"
# The children of each package from the lowest floor to the highest; several on one line share a floor and do not
# import each other unless the line is a single group named in `SAME_FLOOR`.
FLOORS = {
    "": [
        "errors",
        "progress",
        "storage",
        "config interrupts",
        "parallel",
        "data",
        "models",
        "interop",
        "objectives",
        "training",
        "evaluation",
        "api",
        "report plan",
        "verify",
        "tools demo",
        "cli",
    ],
    "config": ["schema", "huggingface", "loading"],
    "data": ["store", "sources", "tokenizers", "jobs", "preprocess", "pipeline"],
    "models": [
        "compute_options families param_paths pooling sequence_parallel vocab_parallel",
        "layers",
        "fused_attention",
        "attention layer_stack",
        "bert t5",
        "task_heads",
        "elmo gpt word2vec",
        "registry",
        "decoding",
    ],
    "training": [
        "freezing guards",
        "rates state",
        "program",
        "checkpoint feature_cache",
        "monitor triggers",
        "stage",
        "loop",
    ],
    "evaluation": ["metrics", "inference retrieval", "evaluators", "predictors"],
    "api": ["batches", "model"],
}
FREE = {"__init__", "__main__"}
# Library -> the only paths that may import it, as prefixes inside the package.
KNOWN_TO = {
    "jax": (
        "models",
        "interop",
        "parallel",
        "objectives",
        "training",
        "evaluation",
        "api",
        "plan",
        "tools",
    ),
    "flax": ("models", "interop", "training", "evaluation", "api"),
    "optax": ("training", "api"),
    "orbax": ("training/checkpoint/orbax_io.py",),
    "grain": (),
}
LAZY = {
    "transformers", "datasets", "tensorflow_datasets", "matplotlib", "torch", "wandb", "tensorboardX",
    "sacrebleu", "rouge_score", "bm25s",
}  # fmt: skip
MOST_MODULES = 15


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
PACKAGES = sorted(name for name, path in MODULES.items() if path.name == "__init__.py")


def imports(path: Path) -> Iterator[str]:
    """Full names of everything a module imports, wherever the import statement is."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


IMPORTS = {name: list(imports(path)) for name, path in MODULES.items()}


def edges(package: str) -> dict[str, dict[str, str]]:
    """{child: {child it imports: an example}} among the direct children of a package."""
    depth = package.count(".") + 1
    found: dict[str, dict[str, str]] = {}
    for name, targets in IMPORTS.items():
        if not name.startswith(package + ".") or name == package:
            continue
        child = name.split(".")[depth]
        for full in targets:
            target = full if full in MODULES else full.rsplit(".", 1)[0]
            if target.startswith(package + ".") and target in MODULES:
                other = target.split(".")[depth]
                if other != child:
                    found.setdefault(child, {}).setdefault(other, f"{name} imports {full}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_has_a_circle_between_its_children(package):
    graph = edges(package)
    done: set[str] = set()

    def visit(child: str, path: tuple[str, ...]) -> None:
        assert child not in path, [
            graph[a][b] for a, b in zip((*path, child), (*path[1:], child), strict=False) if b in graph.get(a, {})
        ]
        if child not in done:
            for other in graph.get(child, {}):
                visit(other, (*path, child))
            done.add(child)

    for child in graph:
        visit(child, ())


@pytest.mark.parametrize("package", FLOORS)
def test_a_lower_floor_never_imports_a_higher_one(package):
    floors = {name: floor for floor, names in enumerate(FLOORS[package]) for name in names.split()}
    full = "bertjax" + (f".{package}" if package else "")
    present = {name.removeprefix(full + ".").split(".")[0] for name in MODULES if name.startswith(full + ".")}
    assert floors.keys() <= present, f"no such modules: {floors.keys() - present}"
    if not package:
        assert present - FREE <= floors.keys(), f"modules without a floor: {present - FREE - floors.keys()}"
    for child, others in edges(full).items():
        for other, example in others.items():
            if child in floors and other in floors:
                assert floors[other] <= floors[child], example


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_small_and_says_what_belongs_in_it(package):
    folder = MODULES[package].parent
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MOST_MODULES
    words = (ast.get_docstring(ast.parse(MODULES[package].read_text(encoding="utf-8"))) or "").split()
    assert len(words) >= 8, f"{package}/__init__.py describes its package in a paragraph"


def test_each_library_is_known_on_its_floor_alone():
    for name, targets in IMPORTS.items():
        path = MODULES[name].relative_to(PACKAGE).as_posix()
        for target in targets:
            allowed = KNOWN_TO.get(target.split(".")[0])
            assert allowed is None or path.startswith(allowed), f"{path} imports {target}"


def test_heavy_libraries_wait_until_they_are_needed():
    for path in MODULES.values():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            found = (
                {alias.name for alias in node.names}
                if isinstance(node, ast.Import)
                else {node.module if isinstance(node, ast.ImportFrom) else None}
            )
            assert not LAZY & {str(name).split(".")[0] for name in found}, f"{path.name}:{node.lineno}"


def test_slow_cases_exist():
    """tests/slow.txt names tests that there are (their parameters are only seen when they are collected)."""
    root = PACKAGE.parent
    for case in (root / "tests" / "slow.txt").read_text(encoding="utf-8").split():
        if "::" in case:
            file, name = case.split("::")
            assert f"def {name.split('[')[0]}(" in (root / file).read_text(encoding="utf-8"), case
