"""Plugins: kinds, metrics and callbacks from a file of the user; saved configurations never import code."""

import copy
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

import bertjax
from bertjax.api.train import make_config
from bertjax.config.loading import plugins
from bertjax.config.loading.load import build, build_saved, load
from bertjax.config.loading.yaml_reader import to_nodes
from bertjax.config.schema import base, custom
from bertjax.config.schema.data import PREPROCESS
from bertjax.config.schema.evaluation import EVALUATIONS
from bertjax.config.schema.model import FAMILIES
from bertjax.config.schema.sources import SOURCES
from bertjax.config.schema.training import OBJECTIVES
from bertjax.data.jobs.jobs import Jobs, LocalRunner
from bertjax.errors import StoppedSafely, UserError
from bertjax.evaluation.metrics import by_prompt
from bertjax.evaluation.restore import restore
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.monitor.callbacks import Callbacks

TABLES = (SOURCES, PREPROCESS, OBJECTIVES, FAMILIES, EVALUATIONS, custom.METRICS, plugins._loaded)
PLUGIN = '''
from dataclasses import replace
from typing import Literal

import bertjax
from bertjax.config.schema.training import ClassificationObjective
from bertjax.objectives.bert import classification


@bertjax.register_objective
class Scaled(ClassificationObjective):
    """The loss of a classification, scaled."""

    kind: Literal["scaled"] = "scaled"
    factor: float = 2.0

    def make(self, tasks):
        return replace(classification(self, tasks), weights={"label": self.factor})


@bertjax.metric("share", inputs="labels")
def share(labels, logits):
    assert labels.shape == (len(logits),) and logits.shape[1] == 2
    return {"yes": 100 * float((logits.argmax(1) == 1).mean()), "no": 0}


@bertjax.callback
class Log:
    def on_train_begin(self, run):
        self.file = run.run_dir / "seen.txt"

    def on_step_end(self, step, metrics):
        self.say("step", step, sorted(metrics)[:3], round(metrics["loss"], 3))

    def on_evaluate(self, name, scores):
        self.say("evaluate", name, scores["share_no"])

    def on_save(self, step, path):
        self.say("save", step, path.name)

    def on_train_end(self):
        self.say("end")

    def say(self, *what):
        with self.file.open("a") as out:
            print(*what, file=out)
'''
CONFIG = """\
plugins: [own.py]
model: {vocab_size: 128, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32,
  max_position_embeddings: 48}
run: {name: own, log_every: 1, compute_dtype: float32, tensorboard: false, compilation_cache_dir: null,
  prepare_workers: 1, checkpoint: {save_every: 2}}
tasks:
  t: &t {source: {kind: jsonl, files: [train.jsonl]}, preprocess: {kind: classify, sequence_length: 16, text_a: text}}
stages:
  - {name: c, data: t, objective: {kind: scaled, factor: 3.0}, steps: 3, batch_size: 8,
     optimizer: {learning_rate: 1.7e-3}, evaluate: [{kind: classification, name: dev, metrics: [share], data: *t}]}
"""


def forget(tables: list[dict]) -> None:
    """As in a new process."""
    for table, before in zip(TABLES, tables, strict=True):
        table.clear()
        table.update(before)
    custom.CALLBACKS.clear()
    base.rebuild()


@pytest.fixture
def new_process(monkeypatch) -> Iterator[object]:
    """A function that forgets everything that plugins have registered."""
    before = [copy.copy(table) for table in TABLES]
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield lambda: forget(before)
    forget(before)


@pytest.fixture
def project(tmp_path, monkeypatch, new_process) -> Path:
    texts = [{"text": f"{'good fine' if n % 2 else 'bad poor'} thing", "label": n % 2} for n in range(24)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, texts)))
    (tmp_path / "own.py").write_text(PLUGIN)
    (tmp_path / "own.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_file_adds_an_objective_a_metric_and_a_callback(project, new_process, one_device, capsys):
    calls = []
    result = bertjax.train("own.yaml", callbacks=[lambda step, metrics: calls.append((step, float(metrics["loss"])))])
    assert result.scores["c"]["dev/share_no"] == 0.0 and 0 <= result.scores["c"]["dev/share_yes"] <= 100
    log = [json.loads(line) for line in Path("runs/own/metrics.jsonl").read_text().splitlines()]
    trained = [line for line in log if line["kind"] == "train"]
    assert calls == [(line["step"], line["loss"]) for line in trained] and len(calls) == 3
    assert trained[0]["loss"] == pytest.approx(3 * trained[0]["label_loss"], rel=1e-5)  # the factor of the plugin
    seen = Path("runs/own/seen.txt").read_text().splitlines()
    assert [line.split()[0] for line in seen] == ["step", "step", "save", "step", "save", "evaluate", "end"]
    checkpoints = CheckpointReader(project / "runs/own/checkpoints/00-c")
    assert checkpoints.meta()["plugins"] == {"own.py": plugins.loaded()[-1].sha256}

    new_process()  # saved configurations name the plugin and do not import it
    with pytest.raises(UserError, match=r"uses the plugin own.py, .*--plugins own.py .*load_plugins\(\"own.py\"\)"):
        restore(project / "runs/own")
    with pytest.raises(UserError, match=r"config.yaml:\d+: this run uses the plugin own.py, .*plugins=\[own.py\]"):
        load(project / "runs/own/config.yaml")
    assert "scaled" not in OBJECTIVES and not plugins.loaded()
    bertjax.load_plugins("own.py")
    assert restore(project / "runs/own").ctx.config.stages == load(project / "runs/own/config.yaml").stages

    (project / "own.py").write_text(PLUGIN + "# changed\n")  # which is said, and goes on
    capsys.readouterr()
    again = bertjax.train("own.yaml", stages={"c": {"evaluate": []}}, **{"run.name": "own"})
    assert again.scores == result.scores and capsys.readouterr().out == "runs/own: every stage is finished\n"
    meta = checkpoints.meta() | {"plugins": {"own.py": "0" * 64, "other.py": ""}}
    from bertjax.training.run_context import plugin_changes

    changed, gone = plugin_changes(again.config, meta)
    assert "own.py has changed since step 3" in changed and "other.py" in gone and "not used" in gone


def test_it_stops_safely_and_names_a_callback_that_fails(project, one_device):
    class Stop(bertjax.Callback):
        def on_step_end(self, step, metrics):
            if step == 1:
                os.kill(os.getpid(), signal.SIGINT)

    def fail(step, metrics):
        raise ZeroDivisionError("of mine")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StoppedSafely, match="stopped at step 1 of stage 'c', saved"):
        bertjax.train("own.yaml", callbacks=[Stop])
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(UserError, match=r"callback 'fail' \(ZeroDivisionError, test_plugins.py:\d+\) failed: of mine"):
        bertjax.train("own.yaml", callbacks=[fail])
    assert CheckpointReader(project / "runs/own/checkpoints/00-c").committed_steps() == [1, 2]  # nothing was lost
    stopper = type("Stopper", (), {"on_train_begin": lambda self, run: run.stop()})
    with pytest.raises(StoppedSafely, match="stopped"):
        bertjax.train("own.yaml", callbacks=[stopper], run={"name": "other"})
    with pytest.raises(UserError, match="callbacks: 7 is no callback; give an object with methods such as"):
        bertjax.train("own.yaml", callbacks=[7])
    with pytest.raises(UserError, match="callbacks: give a list of callbacks"):
        bertjax.train("own.yaml", callbacks=stopper)
    with pytest.raises(UserError, match=r"callback 'Needs' \(TypeError, .*cannot be made without arguments"):
        Callbacks([type("Needs", (), {"__init__": lambda self, x: None})])


def test_a_changed_configuration_is_merged_like_yaml(project, new_process):
    config = make_config("own.yaml", "run.seed=2", run={"root": Path("elsewhere")}, stages={"c": {"steps": 9}},
                         **{"run.log_every": np.int64(5), "stages.c.objective.factor": 7.0})  # fmt: skip
    assert (config.run.root, config.run.seed, config.run.log_every) == ("elsewhere", 2, 5)
    assert (config.stages[0].steps, config.stages[0].objective.factor, config.stages[0].batch_size) == (9, 7.0, 8)
    assert make_config(config) is config and make_config(config, run={"seed": 3}).run.seed == 3
    assert make_config(config.model_dump(), "run.seed=4").run.seed == 4
    with pytest.raises(UserError, match="keyword argument: run.sed: unknown key .*did you mean 'seed'"):
        make_config(config, run={"sed": 1})
    with pytest.raises(UserError, match="keyword argument: stages.d: no such element"):
        make_config("own.yaml", stages={"d": {"steps": 1}})
    with pytest.raises(UserError, match=r"a configuration is a Config, .* \(got int\)"):
        make_config(3)
    for wrong in ({1, 2}, print):
        with pytest.raises(UserError, match=r"^a: stages\.0\.name: a value of type .*; give a number, a text"):
            to_nodes({"stages": [{"name": wrong}]}, "a")
    with pytest.raises(UserError, match="^the configuration: stages: required key is missing"):
        make_config({})
    with pytest.raises(UserError, match=r"an override is a text such as 'run.seed=1' \(got 3\)"):
        make_config({}, 3)
    with pytest.raises(UserError, match="load_plugins: give paths or names of modules, each as an argument"):
        bertjax.load_plugins(["own.py"])
    bertjax.load_plugins(Path("own.py"))
    saved = config.model_dump(mode="json")
    new_process()  # a saved configuration imports what the command line names
    with pytest.raises(UserError, match="somewhere: this run uses the plugin own.py"):
        build_saved(saved, where="somewhere")
    assert build_saved(saved, ["plugins=[own.py]"], where="somewhere").model_dump(mode="json") == saved


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.py", None, r"own.yaml:1: plugins: gone.py: no such file; did you mean 'own.py'\?$"),
        ("bad.py", "x = 1\ndef f(:\n", r"own.yaml:1: plugins: bad.py: line 2: SyntaxError: "),
        ("boom.py", "x = 1\n1 / 0\n", r"own.yaml:1: plugins: boom.py: line 2: ZeroDivisionError: division by zero"),
        ("leave.py", "raise SystemExit(3)\n", r"own.yaml:1: plugins: leave.py: line 1: SystemExit: 3"),
        ("no_such_module", None, r"own.yaml:1: plugins: no_such_module: no such module; install it, or name a file"),
        ("own", None, r"own.yaml:1: plugins: own: no such module; did you mean the file 'own.py'\?"),
        ("not a name", None, r"own.yaml:1: plugins: 'not a name': not the path of a Python file"),
        (
            "twice.py",
            "import bertjax\n\n@bertjax.metric('rouge')\ndef rouge(a, b): ...\n",
            r"plugins: twice.py: line 3: ValueError: metric 'rouge' is already registered",
        ),
        (
            "nameless.py",
            "import bertjax\nfrom bertjax.config.schema.base import Section\n"
            "@bertjax.register_objective\nclass N(Section):\n    def make(self, tasks): ...\n",
            r"nameless.py: line 3: ValueError: N: give it its name: kind: Literal\['name'\] = 'name'",
        ),
    ],
)
def test_a_plugin_that_fails_is_one_line(project, name, content, message):
    if content is not None:
        Path(name).write_text(content)
    Path("own.yaml").write_text(CONFIG.replace("own.py", name))
    with pytest.raises(UserError, match=message) as found:
        load("own.yaml")
    assert "\n" not in str(found.value)


def test_a_child_file_decides_which_plugins_are_imported(project):
    Path("child.yaml").write_text("extends: own.yaml\nplugins: [own.py]\nstages: {c: {objective: {factor: 4}}}\n")
    Path("own.yaml").write_text(CONFIG.replace("own.py", "gone.py"))
    assert load("child.yaml").stages[0].objective.factor == 4


def test_metrics_of_plugins(new_process):
    examples = [by_prompt.TextExample("in", "a", references=("a", "b"), extra={})] * 2
    bertjax.metric("longest")(lambda references, predictions: max(map(len, predictions)) + len(references[0]))
    task = {"source": {"files": ["a"]}, "preprocess": {"kind": "text_to_text", "inputs": "{a}", "targets": "{b}"}}
    stage = {"name": "s", "data": task, "steps": 1, "objective": {"kind": "text_to_text"}}
    t5 = {"model": {"family": "t5"}, "tokenizer": {"kind": "sentencepiece"}}

    def wanted(metrics):
        evaluation = {"kind": "text_to_text", "data": task, "metrics": metrics}
        return t5 | {"stages": [stage | {"evaluate": [evaluation]}]}

    assert build(wanted(["longest", "f1"])).stages[0].evaluate[0].metrics == ["longest", "f1"]
    with pytest.raises(UserError, match="'wsc' or 'longest' .*did you mean 'longest'"):
        build(wanted(["longst"]))
    assert by_prompt.score(["longest"], examples, ["x", "xyz"])["longest"] == 5.0
    bertjax.metric("array")(lambda references, predictions: jax.numpy.float32(2))
    assert by_prompt.score(["array"], examples, ["x", "y"])["array"] == 2.0
    for wrong, message in (
        (lambda a, b: "high", "metric 'wrong' gave 'high'; return a number"),
        (lambda a, b: 1 / 0, r"metric 'wrong' \(ZeroDivisionError, test_plugins.py:\d+\) failed: division by zero"),
    ):
        custom.METRICS.pop("wrong", None)
        bertjax.metric("wrong")(wrong)
        with pytest.raises(UserError, match=message):
            by_prompt.score(["wrong"], examples, ["x", "y"])
    bert = {"stages": [{"name": "s", "data": {"source": {"files": ["a"]}}, "steps": 1, "evaluate": [
        {"kind": "classification", "metrics": ["f1"], "data": {"source": {"files": ["a"]}}}]}]}  # fmt: skip
    with pytest.raises(UserError, match="there is no metric 'f1': a plugin registers it by @bertjax.metric"):
        build(bert)


def test_worker_processes_know_the_kinds_of_plugins(project, tmp_path):
    Path("kinds.py").write_text(
        "from typing import Literal\nimport numpy as np\nfrom bertjax.config.schema.base import Section\n"
        "from bertjax.data.jobs.jobs import JobOutput\n\nclass Mine(Section):\n    size: int = 1\n\n"
        "def make(shared, argument, index, folder):\n    (folder / f'{index}.txt').write_text('x' * shared.size)\n"
        "    return JobOutput([f'{index}.txt'], {}, np.zeros(1, np.int32))\n"
    )
    (plugin,) = plugins.load_plugins("kinds.py")
    module = sys.modules[plugin.module]
    jobs = Jobs(module.make, module.Mine(size=3), tmp_path / "out", tmp_path / "records")
    (tmp_path / "out").mkdir()
    assert len(list(LocalRunner().run(jobs, [None, None], workers=2))) == 2
    assert (tmp_path / "out/1.txt").read_text() == "xxx"
