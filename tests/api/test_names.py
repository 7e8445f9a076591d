"""The public names of `import bertjax`: each can be imported, is documented, and is known to type checkers."""

import builtins
import subprocess
import sys
from pathlib import Path

import pytest

import bertjax

USER_SCRIPT = """\
from pathlib import Path
import bertjax

model = bertjax.open(Path("runs/qa"), step=3, batch_size=8)
reveal_type(model)
reveal_type(model.fill_mask("a [MASK]")["masks"][0][0]["probability"])
reveal_type(model.fill_mask(["a [MASK]"]))
reveal_type(model.classify(["a"])[0])
reveal_type(model.answer("q", "c")["answer"])
reveal_type(model.generate("a", beam_size=4))
reveal_type(model.embed(["a"]))
reveal_type(bertjax.load("x.yaml"))
reveal_type(model.config.stages[0].batch_size)
model.generate("a", beams=4)
model.answr("a")
bertjax.opne("x")
"""
TYPES = """\
bertjax.api.model.Model
float
list[TypedDict(bertjax.evaluation.predictors.results.FilledText
TypedDict(bertjax.evaluation.predictors.results.Classification
str | None
str
ndarray
bertjax.config.schema.run.Config
int
error: Unexpected keyword argument "beams"
error: "Model" has no attribute "answr"
"""


def test_public_names_exist_and_are_documented():
    assert set(dir(bertjax)) == {*bertjax.__all__, "open"}
    for name in dir(bertjax):
        found = getattr(bertjax, name)
        assert name == "__version__" or (found.__doc__ or "").strip(), name
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        bertjax.opne  # noqa: B018


def test_a_star_import_leaves_open_alone():
    names: dict = {}
    exec("from bertjax import *", names)
    assert names["Model"] is bertjax.Model and names.get("open", builtins.open) is builtins.open


def test_type_checkers_are_told_every_name():
    """By the imports under TYPE_CHECKING, which must agree with the table of lazy names."""
    import ast

    tree = ast.parse(Path(bertjax.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    assert typed == bertjax._MODULES and {"__version__", *typed} == {*bertjax.__all__, "open"}


@pytest.mark.slow
def test_a_users_script_is_type_checked(tmp_path):
    (tmp_path / "script.py").write_text(USER_SCRIPT)
    repository = Path(bertjax.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", repository / "pyproject.toml", tmp_path / "script.py"],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout
    for line in TYPES.splitlines():
        assert line in said, said
