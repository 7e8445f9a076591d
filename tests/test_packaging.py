"""What the project declares, what the lock pins and what the code imports agree."""

import ast
import hashlib
import re
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import bertjax
from bertjax.tools.doctor import requirements

ROOT = Path(__file__).resolve().parents[1]
LOCKED_EXTRAS = ("tensorboard",)  # what `make demo` and `make test` install beside the core and the dev group
# The locks, each with the extras and groups it has beside the core.
LOCK, TPU_LOCK = "requirements.lock", "launch/requirements-tpu.lock"
LOCKED = {LOCK: (LOCKED_EXTRAS, "dev"), TPU_LOCK: ((*LOCKED_EXTRAS, "tpu", "gcs"), "build")}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")

# Import names that differ from the name of the distribution.
DISTRIBUTION = {
    "apache_beam": "apache-beam",
    "array_record": "array-record",
    "orbax": "orbax-checkpoint",
    "pydantic_core": "pydantic",  # which pins it and documents its errors
    "rouge_score": "rouge-score",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
    "yaml": "pyyaml",
}


@cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@cache
def lock_text(name: str = LOCK) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def lock(name: str = LOCK) -> list[tuple[Requirement, list[str]]]:
    """The lock's requirements, each with its hashes; a line that is neither (nor a comment) fails."""
    joined = re.sub(r"\\\n\s*", "", lock_text(name))
    pins = []
    for line in joined.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            spec, *options = re.split(r"\s*--", line.strip())
            assert all(option.startswith("hash=") for option in options), f"an option that is not a hash: {line[:200]}"
            pins.append((Requirement(spec), [option.removeprefix("hash=") for option in options]))
    return pins


def environment(python: str) -> dict[str, str]:
    return {
        "python_version": python,
        "python_full_version": f"{python}.5",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "platform_system": "Linux",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "extra": "",
    }


def applies(marker: Marker | None, python: str) -> bool:
    return marker is None or marker.evaluate(environment(python))


def locked_direct(name: str = LOCK) -> list[Requirement]:
    extras, (added, group) = project()["project"]["optional-dependencies"], LOCKED[name]
    lines = [*project()["project"]["dependencies"], *project()["dependency-groups"][group]]
    return [Requirement(line) for line in [*lines, *(line for extra in added for line in extras[extra])]]


def pins(name: str, python: str) -> dict[str, Version]:
    """The one version of each package for a Python."""
    found: dict[str, list[Version]] = {}
    for requirement, _ in lock(name):
        if applies(requirement.marker, python):
            version = Version(str(requirement.specifier).removeprefix("=="))
            found.setdefault(canonicalize_name(requirement.name), []).append(version)
    assert all(len(versions) == 1 for versions in found.values()), "one version of each for a given Python"
    return {package: versions[0] for package, versions in found.items()}


@pytest.mark.parametrize("name", LOCKED)
def test_lock_names_no_host_and_no_path(name: str) -> None:
    for pattern in (r"://", r"--(extra-)?index-url", r"--find-links", r"--trusted-host", r" @ ", r"(^|[\s=])[/~]\w"):
        found = re.search(pattern, lock_text(name), re.MULTILINE)
        assert found is None, f"{pattern!r} in {name}: {found and lock_text(name)[found.start() :][:80]!r}"


@pytest.mark.parametrize("name", LOCKED)
def test_every_requirement_is_pinned_and_hashed(name: str) -> None:
    assert len(lock(name)) > 50
    for requirement, hashes in lock(name):
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        assert requirement.url is None, requirement
        assert hashes, f"{requirement.name} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), requirement.name


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", LOCKED)
def test_lock_satisfies_every_direct_dependency(name: str, python: str) -> None:
    found = pins(name, python)
    for wanted in locked_direct(name):
        if applies(wanted.marker, python):
            version = found.get(canonicalize_name(wanted.name))
            assert version, f"{wanted.name} is not in {name}: run `make lock`"
            assert wanted.specifier.contains(version, prereleases=True), f"{wanted} is pinned to {version}"


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_of_pods_has_the_tested_versions_and_those_that_tpus_need(python: str) -> None:
    tested, pods = pins(LOCK, python), pins(TPU_LOCK, python)
    assert {name for name in tested.keys() & pods.keys() if tested[name] != pods[name]} == set()
    assert {"libtpu", "gcsfs", "hatchling", "editables"} <= pods.keys()
    assert not pods.keys() & {"pytest", "mypy", "ruff", "torch"}


def test_lock_leaves_out_what_only_some_need() -> None:
    names = {canonicalize_name(requirement.name) for requirement, _ in lock()}
    unwanted = {"torch", "apache-beam", "libtpu", "wandb", "gcsfs", "tensorflow", "bertjax"}
    assert not names & unwanted
    assert not [name for name in names if name.startswith(("nvidia-", "jax-cuda"))]


def test_python_bound_is_the_one_setup_checks() -> None:
    assert project()["project"]["requires-python"] == ">=3.11"
    assert "sys.version_info < (3, 11)" in (ROOT / ".ci" / "setup").read_text(encoding="utf-8")


def test_version_is_the_same_everywhere() -> None:
    version = project()["project"]["version"]
    headings = re.findall(r"^## .*$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert version in headings[0], f"CHANGELOG.md opens with {headings[0]!r}, not {version}"
    assert bertjax.__version__ == version


def test_installed_version_is_this_one() -> None:
    try:
        installed = metadata.version("bertjax")
    except metadata.PackageNotFoundError:
        pytest.skip("run from a checkout that is not installed")
    assert installed == project()["project"]["version"]


def test_licence_is_the_published_text() -> None:
    # The digest of Apache's LICENSE-2.0.txt, the same file that Debian ships in /usr/share/common-licenses.
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert project()["project"]["license"] == "Apache-2.0"


def third_party_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).split(".")[0])
    return found - sys.stdlib_module_names - {"bertjax"}


def test_every_import_is_declared() -> None:
    """Also imports inside functions. An optional one counts when some extra brings it."""
    extras = project()["project"]["optional-dependencies"]
    lines = [*project()["project"]["dependencies"], *(line for lines in extras.values() for line in lines)]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    missing = {}
    for path in sorted((ROOT / "bertjax").rglob("*.py")):
        names = {canonicalize_name(DISTRIBUTION.get(name, name)) for name in third_party_imports(path)}
        if names - declared:
            missing[str(path.relative_to(ROOT))] = sorted(names - declared)
    assert not missing, f"imported but not in pyproject.toml: {missing}"


def test_every_core_dependency_is_imported() -> None:
    """jaxlib and others come with those; a dependency that nothing imports is one too many."""
    imported = set()
    for path in sorted((ROOT / "bertjax").rglob("*.py")):
        imported |= {canonicalize_name(DISTRIBUTION.get(name, name)) for name in third_party_imports(path)}
    core = {canonicalize_name(Requirement(line).name) for line in project()["project"]["dependencies"]}
    assert core <= imported, f"declared but never imported: {sorted(core - imported)}"


def test_doctor_checks_every_core_dependency() -> None:
    declared = {canonicalize_name(Requirement(line).name) for line in project()["project"]["dependencies"]}
    names = [canonicalize_name(one.name) for one in requirements()]
    assert set(names) == declared and len(names) == len(declared)
