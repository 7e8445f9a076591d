"""Starting without a checkout: shipped configurations by name, help, examples, completion, the schema."""

import json
import re
import shlex
import subprocess
import zipfile
from pathlib import Path

import pytest
from hatchling.build import build_wheel

from bertjax import demo
from bertjax.cli import main as cli_main
from bertjax.cli.completion import completion_script
from bertjax.cli.main import COMMANDS, main
from bertjax.config.loading import shipped
from bertjax.config.loading.load import load
from bertjax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in ROOT.glob("configs/**/*.yaml"))
EXAMPLES = [(name, example) for name, command in COMMANDS.items() for example in command.examples]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], argv: list[str], code: int = 0) -> str:
    assert main(argv) == code
    out, err = capsys.readouterr()
    return out if code == 0 else err


# ---- shipped configurations -----------------------------------------------------------------------------------------


def test_the_wheel_holds_all_configurations(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))).namelist()
    assert {f"bertjax/configs/{name}.yaml" for name in NAMES} == {n for n in names if "/configs/" in n}
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"bertjax"}


def test_both_places_are_searched(tmp_path, monkeypatch):
    for place in ("wheel/bertjax/configs", "checkout/configs"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "demo.yaml").write_text("# A demo.\n")
        monkeypatch.setattr(shipped, "PACKAGE", tmp_path / place.split("/")[0] / "bertjax")
        assert shipped.shipped_configs() == {"demo": tmp_path / place / "demo.yaml"}
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path)
    with pytest.raises(UserError, match="shipped configurations are missing; install bertjax again"):
        shipped.shipped_configs()


def test_names_are_resolved_and_a_local_file_wins(here, capsys):
    assert load("bert/pretrain_large").model.num_hidden_layers == 24  # it extends another one
    (here / "own.yaml").write_text("extends: debug/cpu\nrun: {name: own}\n")
    assert load("own.yaml").run.name == "own"
    assert "did you mean 'own.yaml'?" in said(capsys, ["train", "own"], 2)
    (here / "debug").mkdir()
    (here / "debug" / "cpu").write_text("extends: debug/gpu\nrun: {name: local}\n")
    assert load("debug/cpu").run.name == "local"
    assert load("debug/gpu").run.name == "debug-gpu"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("bert/pretrain_bse", "did you mean 'bert/pretrain_base'?"),
        ("pretrain_base", "did you mean 'bert/pretrain_base' or 't5/pretrain_base'?"),
        ("squad_v1.1", "did you mean 'finetune/squad_v1'?"),
        ("configs/bert/pretrain_base.yaml", "the shipped configuration is called 'bert/pretrain_base'"),
        ("bert/pretrain_base.yaml", "the shipped configuration is called 'bert/pretrain_base'"),
        ("xyz", "`bertjax configs` lists them"),
        ("xyz.yaml", "xyz.yaml: no such file\n"),
    ],
)  # fmt: skip
def test_unknown_names(here, capsys, name, hint):
    for command in (["train", name], ["plan", name, "--topology", "cpu:8"]):
        line = said(capsys, command, 2)
        assert hint in line and line.count("\n") == 1
    assert name in said(capsys, ["inspect", name], 2)
    assert not list(here.iterdir())


def test_configs_lists_and_prints(capsys):
    lines = said(capsys, ["configs"]).splitlines()
    assert sorted(line.split()[0] for line in lines) == NAMES and max(map(len, lines)) < 160
    assert all(line.endswith(".") for line in lines)
    listed = json.loads(said(capsys, ["configs", "--json"]))
    assert [each["name"] for each in listed] == [line.split()[0] for line in lines]
    assert {line.split("/")[0] for line in said(capsys, ["configs", "t5"]).splitlines()} == {"t5"}
    text = (ROOT / "configs/bert/pretrain_tiny.yaml").read_text()
    assert said(capsys, ["configs", "bert/pretrain_tiny"]) == text
    assert json.loads(said(capsys, ["configs", "bert/pretrain_tiny", "--json"]))["text"] == text
    assert "no shipped configuration; did you mean 'bert/pretrain_tiny'?" in said(
        capsys, ["configs", "bert/pretrain_tin"], 2
    )


def test_the_demo_names_its_folder(here, capsys, monkeypatch):
    """The commands shown are those of a user; a file called `demo` does not get in the way."""
    (here / "demo").write_text("x")
    ran = []
    monkeypatch.setattr(
        demo.subprocess, "run", lambda command, **_: ran.append(command) or subprocess.CompletedProcess([], 3)
    )
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--root", "my runs"])
    assert stopped.value.code == 3 and ran[0][5] == str(ROOT / "configs" / "demo.yaml")
    assert (
        ran[0][6] == 'run.root="my runs"' and "$ bertjax train demo 'run.root=\"my runs\"'" in capsys.readouterr().out
    )
    (here / "file").write_text("x")
    assert "--root: file: is a file; name a folder" in said(capsys, ["demo", "--root", "file"], 2)


# ---- help and its examples ------------------------------------------------------------------------------------------


def test_help_in_every_form(capsys):
    assert said(capsys, ["help"]) == said(capsys, ["--help"]) == said(capsys, [])
    assert said(capsys, ["help", "train"]) == said(capsys, ["train", "--help"]) == said(capsys, ["train", "-h"])
    assert said(capsys, ["help", "predict"]) == said(capsys, ["predict", "--help"])
    assert said(capsys, ["help", "predict", "answer"]) == said(capsys, ["predict", "answer", "-h"])
    assert "unknown command 'trian'; did you mean 'train'?" in said(capsys, ["help", "trian"], 2)


def words_of(example: str) -> list[str]:
    """The arguments of `bertjax` in an example."""
    inside = re.search(r"\$\((.*)\)", example)
    after = (inside[1] if inside else example).split("| ")[-1].split(" > ")[0]
    words = shlex.split(after)
    return words[words.index("bertjax") + 1 :]


@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=[example for _, example in EXAMPLES])
def test_examples_are_valid(here, name, example):
    """An example parses, its configuration is shipped and loads with the overrides, its run is explained."""
    command, words = COMMANDS[name], words_of(example)
    found, rest = cli_main._split_command(words)
    assert found == name
    arguments = cli_main._parse(name, command, rest)
    config = getattr(arguments, "config", None) or getattr(arguments, "target", None)
    if config in shipped.shipped_configs():
        load(config, arguments.overrides)
    else:
        assert config is None or config.startswith("runs/")
    for run in re.findall(r"runs/[\w-]+(?= |/|$)", example):
        assert command.note or run == "runs/imported", f"say in `note` where {run} comes from"


@pytest.mark.parametrize(
    "example",
    [example for name, example in EXAMPLES if name in ("configs", "schema", "completion")],
)
def test_quick_examples_work(here, capsys, example):
    assert said(capsys, words_of(example)) or (here / "bertjax.schema.json").is_file()


@pytest.mark.slow
def test_other_examples_work(here, capsys):
    """Those that need neither a run nor a network nor other packages, with fewer steps."""
    small = {"train": ["stages.pretrain.steps=2", "stages.qa.steps=2", "stages.qa.evaluate=[]"]}
    small["compare"] = [*small["train"], "stages.pretrain.optimizer.warmup_steps=0"]
    ran = 0
    for name, example in EXAMPLES:
        if name in ("train", "compare", "prepare", "mix", "inspect", "plan"):
            words = words_of(example)
            if not any(word in example for word in ("beam", "runs/", "v5", "h200")):
                words = [word for word in words if "steps=20" not in word]
                assert main([*words, *small.get(name, [])]) == 0, example
                ran += 1
    assert ran >= 9


# ---- completion -----------------------------------------------------------------------------------------------------

CASES = {
    "bertjax tra": {"train"},
    "bertjax help tra": {"train"},
    "bertjax predict a": {"answer"},
    "bertjax predict fill-mask --to": {"--top-k"},
    "bertjax train --dev": {"--device"},
    "bertjax train --device c": {"cpu"},
    "bertjax train bert/pretrain_ti": {"bert/pretrain_tiny"},
    "bertjax train m": {"my.yaml", "more/"},
    "bertjax train --device cpu m": {"my.yaml", "more/"},
    "bertjax train my.yaml mesh.": {"mesh.dcn=", "mesh.data=", "mesh.fsdp=", "mesh.tensor=", "mesh.rules="},
    "bertjax train my.yaml --device cpu mesh.t": {"mesh.tensor="},
    "bertjax evaluate runs/demo run.compute": {"run.compute_dtype="},
    "bertjax inspect my": {"my.yaml"},
    "bertjax train my.yaml run.se": {"run.seed=", "run.segments="},
    "bertjax train my.yaml stages.0.optimizer.warmup_r": {"stages.0.optimizer.warmup_ratio="},
    "bertjax train my.yaml stages.qa.optimizer.warmup_r": {"stages.qa.optimizer.warmup_ratio="},
    "bertjax plan my.yaml --top": {"--topology"},
    "bertjax evaluate mo": {"more/"},
    "bertjax configs finetune/squad_v2": {"finetune/squad_v2"},
    "bertjax init cl": {"classify"},
    "bertjax init classify m": {"my.yaml", "my.csv", "more/"},
    "bertjax completion z": {"zsh"},
    "bertjax report --output my.c": {"my.csv"},
}


def test_completion_in_bash(here):
    for name in ("my.yaml", "my.csv", "more/x"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("")
    script = [completion_script("bash", COMMANDS.values())]
    for line in CASES:
        script += [
            f'COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); _bertjax 2>&1; echo "${{COMPREPLY[@]}}"'
        ]
    done = subprocess.run(["bash", "--norc", "-c", "\n".join(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr
    got = dict(zip(CASES, (set(line.split()) for line in done.stdout.splitlines()), strict=True))
    assert got == CASES
    zsh = completion_script("zsh", COMMANDS.values())
    assert zsh.startswith("autoload") and script[0].split("\n", 1)[1] in zsh
