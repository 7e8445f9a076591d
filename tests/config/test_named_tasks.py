"""Tasks and mixtures by name: SeqIO's names, registries of the user, held-out data and what is written to a run."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bertjax.cli.main import main
from bertjax.config.loading.load import build, dump, fingerprint, load
from bertjax.config.loading.named_tasks import FOLDER, shipped_registry
from bertjax.config.loading.variants import run_config
from bertjax.config.schema.run import Config
from bertjax.errors import UserError

T5 = {"family": "t5", "vocab_size": 200, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
LENGTHS = {"sequence_length": 512, "target_length": 114, "pack": True}
# Numbers of examples in GLUE_WEIGHT_MAPPING and SUPER_GLUE_WEIGHT_MAPPING of t5/data/glue_utils.py.
GLUE = dict(cola=8551, sst2=67349, mrpc=3668, qqp=363849, stsb=5749, mnli=392702, qnli=104743, rte=2490)
SUPER_GLUE = dict(boolq=9427, cb=250, copa=400, multirc=27243, record=138854, rte=2490, wic=5428)
MINE = """\
tasks:
  capitals:
    source: {kind: jsonl, files: [train.jsonl]}
    preprocess: {kind: text_to_text, inputs: "capital of {country}", targets: "{capital}"}
    validation: {files: [dev.jsonl]}
  ten_capitals: {extends: capitals, limit: 10}
  glue_cola_v002: {extends: glue_cola_v002, limit: 100}
mixtures:
  both: [capitals, glue_cola_v002]
""".replace("both: [", "both: {mixture: [").replace("cola_v002]", "cola_v002]}")


def plain(data: Any, evaluate: Any = (), **sections: Any) -> dict[str, Any]:
    stage = {"name": "s", "data": data, "steps": 1, "objective": {"kind": "text_to_text"}, "evaluate": list(evaluate)}
    return {"model": T5, "tokenizer": {"kind": "sentencepiece"}, "stages": [stage], **sections}


def config_of(data: Any, evaluate: Any = (), overrides: Any = (), **sections: Any) -> Config:
    return build(plain(data, evaluate, **sections), overrides)


def error_of(*given: Any, **sections: Any) -> str:
    with pytest.raises(UserError) as caught:
        config_of(*given, **sections)
    return str(caught.value)


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.yaml").write_text(MINE)
    return str(tmp_path / "mine.yaml")


@pytest.mark.parametrize("registry", [None, "huggingface"])
def test_every_shipped_name_is_a_valid_stage(registry: str | None) -> None:
    names = shipped_registry().names()
    assert len(names) > 45
    stages = [{**plain(name)["stages"][0], "name": name.replace(".", "-")} for name in names]
    registries = {"registries": [registry]} if registry else {}
    config = build({"model": T5, "tokenizer": {"kind": "sentencepiece"}, "stages": stages, **registries})
    for name, stage in zip(names, config.stages, strict=True):
        assert stage.data == name and config.stage_tasks(stage)
        assert {task.preprocess.sequence_length for task in config.stage_tasks(stage).values()} == {512}
    from_hub = {name for name, task in config.tasks.items() if task.source[0].kind == "huggingface"}
    shipped = yaml.safe_load((FOLDER / "huggingface.yaml").read_text())["tasks"]
    assert from_hub == (set(shipped) if registry else set())


def test_the_mixtures_have_seqios_rates() -> None:
    registry = shipped_registry()
    glue = {f"glue_{name}_v002": rate for name, rate in GLUE.items()}
    super_glue = {f"super_glue_{name}_v102": rate for name, rate in SUPER_GLUE.items()}
    wsc = {"dpr_v001_simple": 1322, "super_glue_wsc_v102_simple_train": 259}
    rates = lambda name: registry.describe(name)["mixtures"][name]["mixture"]  # noqa: E731
    assert rates("glue_v002_proportional") == glue
    assert rates("super_glue_v102_proportional") == wsc | super_glue
    assert rates("wsc_dpr_simple_proportional") == wsc
    halves = {"glue_rte_v002": 1245, "super_glue_rte_v102": 1245}  # _dedupe of t5/data/mixtures.py
    for name, most, c4 in (("all_proportional", 2**19, 2**19), ("all_mix", 10**6, 710_000)):
        large = {"wmt_t2t_ende_v003": most, "wmt15_enfr_v003": most, "wmt16_enro_v003": min(610_320, most)}
        large |= {"cnn_dailymail_v002": 287_113, "squad_v010_allanswers": 87_599, "c4_v020_unsupervised": c4}
        assert rates(name) == glue | wsc | super_glue | halves | large
    assert set(rates("all_equal")) == set(rates("all_mix"))


def test_a_name_is_the_section_that_it_stands_for() -> None:
    """The written-out sections of multitask_base before it used names; tests/golden has the resolved files."""
    translate = {"kind": "text_to_text", "prompt": "translate", "languages": ["English", "German"], **LENGTHS}
    article = {"document": "article", "summary": "highlights"}
    tasks: dict[str, Any] = {
        "cola": {
            "source": {"kind": "tfds", "name": "glue/cola"},
            "preprocess": {"kind": "text_to_text", "prompt": "glue_cola", **LENGTHS},
        },
        "cnn_dailymail": {
            "source": {"kind": "tfds", "name": "cnn_dailymail"},
            "preprocess": {"kind": "text_to_text", "prompt": "summarize", "fields": article, **LENGTHS},
        },
        "en_de": {
            "source": {"kind": "tfds", "name": "wmt14_translate/de-en"},
            "preprocess": {**translate, "fields": {"source": "en", "target": "de"}},
        },
    }
    names = {"cola": "glue_cola_v002", "cnn_dailymail": "cnn_dailymail_v002", "en_de": "wmt14_ende_v003"}
    mixture = {"mixture": [*tasks], "rate": "proportional", "limit": 2**19}
    written, named = config_of(mixture, tasks=tasks), config_of(mixture, tasks=names)
    assert dump(written) == dump(named) and fingerprint(written) == fingerprint(named)
    base = load("t5/multitask_base")
    assert {name: base.tasks[name] for name in tasks} == written.tasks


def test_what_is_used_is_written_out(mine: str) -> None:
    config = config_of("both", registries=[mine])
    assert list(config.tasks) == ["capitals", "glue_cola_v002"] and list(config.mixtures) == ["both"]
    assert config.tasks["glue_cola_v002"].limit == 100
    text = dump(config)
    assert "registries" not in text and "validation" not in text
    assert build(yaml.safe_load(text)) == config


def test_own_tasks_come_first_then_registries_in_their_order(mine: str, tmp_path: Path) -> None:
    own = {"source": {"kind": "text", "files": ["a.txt"]}, "preprocess": {"kind": "span_corruption"}}
    assert config_of("glue_cola_v002", tasks={"glue_cola_v002": own}).tasks["glue_cola_v002"].source[0].kind == "text"
    (tmp_path / "first.yaml").write_text("tasks: {ten_capitals: {extends: ten_capitals, limit: 5}}")
    task = config_of("ten_capitals", registries=[str(tmp_path / "first.yaml"), mine]).tasks["ten_capitals"]
    assert (task.limit, task.source[0].files) == (5, ["train.jsonl"])


def test_a_registry_is_relative_to_the_file_that_names_it(mine: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(plain("capitals", registries=["mine.yaml"])))
    below = tmp_path / "below"
    below.mkdir()
    (below / "run.yaml").write_text("extends: ../base.yaml\nrun: {name: x}\n")
    assert load(below / "run.yaml").tasks["capitals"].source[0].files == ["train.jsonl"]


def test_overrides_change_a_named_task() -> None:
    changes = ["tasks.squad_v010_allanswers.limit=7", "tasks.squad_v010_allanswers.source.split='train[:10%]'"]
    task = config_of("squad_v010_allanswers", overrides=changes).tasks["squad_v010_allanswers"]
    assert (task.limit, task.source[0].name, task.source[0].split) == (7, "squad/v1.1", "train[:10%]")
    task = load("t5/multitask_base", ["tasks.cola.source.split='train[:9]'", "tasks.en_ro.limit=3"]).tasks["cola"]
    assert (task.source[0].name, task.source[0].split, task.preprocess.prompt) == (
        "glue/cola",
        "train[:9]",
        "glue_cola",
    )
    own = load("t5/multitask_base", ["tasks.cola.source={kind: huggingface, name: ./glue_cola}"]).tasks["cola"]
    assert (own.source[0].kind, own.preprocess.prompt) == ("huggingface", "glue_cola")
    folder = "tasks.glue_cola_v002.source={kind: huggingface, name: ./cola}"
    task = config_of("glue_cola_v002", overrides=[folder]).tasks["glue_cola_v002"]
    assert (task.source[0].name, task.preprocess.prompt) == ("./cola", "glue_cola")
    c4 = "mixtures.all_mix.mixture.c4_v020_unsupervised=3"
    rates = config_of("all_mix", overrides=[c4]).mixtures["all_mix"].mixture
    assert rates["c4_v020_unsupervised"] == 3 and len(rates) == 23
    inline = config_of({"extends": "glue_cola_v002", "limit": 3}).stages[0].data
    assert (inline.limit, inline.preprocess.prompt) == (3, "glue_cola")


def test_lengths_are_those_of_all_named_tasks() -> None:
    own = {"mine": {"extends": "glue_rte_v002", "preprocess": {"target_length": 4}}}
    mixture = {"mixture": ["c4_v220_span_corruption", "glue_cola_v002", "mine"]}
    config = config_of(mixture, tasks=own, task_feature_lengths={"inputs": 64, "targets": 32})
    lengths = {name: task.preprocess for name, task in config.tasks.items()}
    assert {name: (one.sequence_length, one.target_length) for name, one in lengths.items()} == {
        "mine": (64, 4), "c4_v220_span_corruption": (64, 32), "glue_cola_v002": (64, 32),
    }  # fmt: skip
    config = config_of("wmt16_enro_v003", registries="huggingface", task_feature_lengths={"inputs": 64})
    assert config.tasks["wmt16_enro_v003"].preprocess.sequence_length == 64


def test_evaluations_read_held_out_data(mine: str) -> None:
    evaluate = [
        {"kind": "text_to_text", "data": "glue_cola_v002", "batch_size": 8},
        {"kind": "loss", "name": "mnli", "data": "glue_mnli_v002"},
        {"kind": "loss", "name": "dev", "data": "ten_capitals"},
        {"kind": "loss", "name": "own", "data": "cola"},
        {"kind": "loss", "name": "part", "data": {"extends": "glue_rte_v002", "source": {"split": "train[:5]"}}},
        {"kind": "loss", "name": "all", "data": {"extends": "glue_rte_v002", "limit": 9}},
    ]
    cola = {"extends": "glue_cola_v002", "source": {"kind": "huggingface", "name": "nyu-mll/glue", "config": "cola"}}
    config = config_of("capitals", evaluate, registries=[mine], tasks={"cola": cola})
    found = {one.name: one.data for one in config.stages[0].evaluate}
    assert list(found) == ["glue_cola_v002", "mnli", "dev", "own", "part", "all"]
    splits = {name: getattr(task.source[0], "split", None) for name, task in found.items() if name != "dev"}
    assert splits == {
        "glue_cola_v002": "validation", "mnli": "validation_matched", "own": "validation", "part": "train[:5]",
        "all": "validation",
    }  # fmt: skip
    assert found["own"].source[0].kind == "huggingface" and found["all"].limit == 9
    assert found["dev"].source[0].files == ["dev.jsonl"] and found["dev"].limit == 10
    assert config.stages[0].evaluate[0].batch_size == 8 and set(config.tasks) == {"cola", "capitals"}


def test_an_evaluation_of_a_mixture_is_one_of_each_task() -> None:
    evaluate = [{"kind": "text_to_text", "data": "super_glue_v102_proportional"}]
    made = config_of("super_glue_v102_proportional", evaluate).stages[0].evaluate
    names = {f"super_glue_{name}_v102" for name in SUPER_GLUE} | {"super_glue_wsc_v102_simple_eval"}
    assert {one.name for one in made} == names and len(made) == 8
    assert {one.data.source[0].split for one in made} == {"validation"}
    evaluate = [{"kind": "text_to_text", "data": "glue_v002_proportional"}]
    splits = {one.name: one.data.source[0] for one in config_of("all_mix", evaluate).stages[0].evaluate}
    assert splits["glue_mnli_mismatched_v002"].name == "glue/mnli_mismatched" and len(splits) == 9


def test_variants_know_the_registries_of_the_file(mine: str) -> None:
    config = config_of(
        "glue_cola_v002", registries=[mine], compare=[{"name": "a", "trainable": "all", "overrides": {"data": "both"}}]
    )
    made = run_config(config, "a", {}, {"a": {"stages.s.data": "both"}})
    assert set(made.stage_tasks(made.stages[0])) == {"capitals", "glue_cola_v002"}
    assert made.tasks["glue_cola_v002"].limit == 100


NAMED = [{"kind": "text_to_text", "data": "ours"}]
OURS = {"source": {"kind": "jsonl", "files": ["a"]}, "preprocess": {"kind": "span_corruption"}}


@pytest.mark.parametrize(
    ("given", "sections", "message"),
    [
        (("glue_cola_v02",), {}, "'tasks:'; did you mean 'glue_cola_v002'"),
        (("squad",), {}, "'tasks:'; did you mean 'squad_v010_allanswers' or 'squad_v010_context_free'?"),
        (("xyz",), {}, "'tasks:'; `bertjax tasks` lists the shipped ones"),
        (({"mixture": ["glue_colla_v002"]},), {}, "did you mean 'glue_cola_v002'"),
        (("a",), {"tasks": {"a": "glue_cola"}}, "a.extends: no task or mixture 'glue_cola'; did you mean 'glue_"),
        (("a",), {"tasks": {"a": "b", "b": "a"}}, "a: extends leads back to itself"),
        (("a",), {"tasks": {"a": {"extends": 3}}}, "a.extends: expected the name of a task or mixture"),
        (("a",), {"tasks": {"a": "all_mix"}}, "tasks.a: it extends one of the mixtures; write it there"),
        (("all_mix",), {"registries": ["none.yaml"]}, "no such file (got 'none.yaml'); the shipped registries are: "),
        (("all_mix",), {"registries": 3}, "registries: expected the path of a YAML file"),
        (("all_mix",), {"task_feature_lengths": {"input": 3}}, "such as {inputs: 512, targets: 114}"),
        (("all_mix",), {"task_feature_lengths": {"inputs": "x"}}, "such as {inputs: 512, targets: 114}"),
        (("ours", NAMED), {"tasks": {"ours": OURS}}, ".data: which data of ours are held out is not known"),
        (("all_mix", NAMED), {}, "config: stages.s.evaluate.text_to_text.data: no task or mixture 'ours'"),
        (("all_mix",), {"tasks": {"glue_rte_v002": {"lim": 3}}}, "tasks.glue_rte_v002.lim: unknown key"),
    ],
)  # fmt: skip
def test_mistakes_are_explained(given: Any, sections: Any, message: str) -> None:
    text = error_of(*given, **sections)
    assert message in text and len(text.splitlines()) <= 2, text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: {}", ":1: task: unknown key; a registry has 'tasks' and 'mixtures'"),
        ("tasks: [a]", ":1: tasks: must be names with sections"),
        ("tasks:\n  a: 3", ":2: tasks.a: must be a section"),
        (
            "tasks: {a: glue_cola_v002}\nmixtures:\n  a: {mixture: [b]}",
            ":3: mixtures.a: 'a' is also a task of this file",
        ),
        ("tasks: {a: {source: {kind: tfd}}}", ":1: tasks.a.source"),
        ("", "the file is empty"),
    ],
)
def test_mistakes_in_a_registry_name_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    found = error_of("a", registries=[str(path)])
    assert found.startswith(str(path)) and message in found


def test_the_command_lists_and_prints(mine: str, capsys) -> None:
    assert main(["tasks", "--json"]) == 0
    listed = {each["name"]: each["summary"] for each in json.loads(capsys.readouterr().out)}
    assert list(listed) == shipped_registry().names()
    assert listed["glue_cola_v002"] == "tfds glue/cola: glue_cola"
    assert listed["glue_v002_proportional"] == "explicit mixture of 8 tasks"
    assert main(["tasks", "ten_capitals", "--registry", mine]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["tasks"]["ten_capitals"]["limit"] == 10
    assert printed["tasks"]["ten_capitals"]["validation"] == {"files": ["dev.jsonl"]}
    assert main(["tasks", "super_glue", "--registry", "huggingface"]) == 0
    assert all(line.startswith("super_glue_") for line in capsys.readouterr().out.splitlines())
    assert main(["tasks", "glue_colla"]) == 2
    assert "no task or mixture; did you mean 'glue_cola_v002'" in capsys.readouterr().err
    assert main(["tasks", "--registry", "none.yaml"]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_held_out_data_of_nested_mixtures_are_those_of_all_tasks(mine: str, tmp_path: Path) -> None:
    """seqio's Evaluator scores `mixture.tasks`, which are those of the mixtures inside it too."""
    nested = "mixtures: {all: {mixture: {both: 1, ten_capitals: 2, glue_v002_proportional: 3}, rate: explicit}}"
    (tmp_path / "nested.yaml").write_text(nested)
    config = config_of(
        "all", [{"kind": "text_to_text", "data": "all"}], registries=[str(tmp_path / "nested.yaml"), mine]
    )
    names = [evaluation.name for evaluation in config.stages[0].evaluate]
    glue = [evaluation["name"] for evaluation in plain_evaluations("glue_v002_proportional")]
    assert names == ["capitals", "glue_cola_v002", "ten_capitals", *(name for name in glue if name != "glue_cola_v002")]
    assert "glue_mnli_mismatched_v002" in names, "what `validation` of the inner mixture says"


def plain_evaluations(data: str) -> list[dict[str, Any]]:
    return [e.model_dump() for e in config_of(data, [{"kind": "text_to_text", "data": data}]).stages[0].evaluate]


def test_a_mixture_that_contains_itself_is_refused_once(tmp_path: Path) -> None:
    mixture = {"mixture": {"a": 1, "glue_cola_v002": 1}, "rate": "explicit"}
    said = error_of("a", [{"kind": "text_to_text", "data": "a"}], mixtures={"a": mixture})
    assert said.count("contain each other") == 1 and "\n" not in said


def test_validation_that_is_no_name_is_shown_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(MINE.replace("glue_cola_v002]}", "glue_cola_v002], validation: {files: [d]}}"))
    said = error_of("both", [{"kind": "text_to_text", "data": "both"}], registries=[str(tmp_path / "r.yaml")])
    assert "no task or mixture {'files': ['d']}" in said


@pytest.mark.parametrize("kind", ["[text_to_text]", "{a: 1}", "3"])
def test_kinds_that_are_no_text_are_reported(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(MINE.replace("kind: text_to_text", f"kind: {kind}"))
    lengths = {"inputs": 8, "targets": 8}
    said = error_of("capitals", registries=[str(path)], task_feature_lengths=lengths)
    assert "r.yaml:4: tasks.capitals.preprocess.kind: 'kind' must be one of" in said
    path.write_text(MINE.replace("kind: jsonl", f"kind: {kind}"))
    said = error_of("ten_capitals", [{"kind": "loss", "data": "ten_capitals"}], registries=[str(path)])
    assert "r.yaml:3: tasks.ten_capitals.source.kind: 'kind' must be one of" in said


def test_lengths_that_no_task_gets_are_refused(mine: str) -> None:
    own = {
        "source": {"kind": "jsonl", "files": ["a"]},
        "preprocess": {"kind": "text_to_text", "inputs": "a", "targets": "b"},
    }
    lengths = {"task_feature_lengths": {"inputs": 64, "targets": 8}}
    assert "task_feature_lengths: is for tasks from a registry, and none is used" in error_of(own, **lengths)
    for data in ("capitals", "both", {"extends": "capitals", "limit": 2}):
        config = config_of(data, registries=[mine], **lengths)
        assert {task.preprocess.sequence_length for task in config.stage_tasks(config.stages[0]).values()} == {64}


def test_a_mixture_names_each_task_once() -> None:
    """A task twice has no other rate than once: SeqIO's rates are by name, too."""
    mixture = {"mixture": ["glue_cola_v002", "glue_sst2_v002", "glue_cola_v002"]}
    assert "mixture names 'glue_cola_v002' twice" in error_of(mixture)


def test_suggestions_are_one_line_and_other_names(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text('tasks: {capitals: capitals, "capi\\ntals2": {extends: glue_cola_v002}}')
    said = error_of("capitals", registries=[str(tmp_path / "r.yaml")])
    assert "capitals.extends: no task or mixture 'capitals'; did you mean 'capi\\ntals2'?" in said


def test_a_mistyped_name_in_an_override_is_suggested() -> None:
    said = error_of("squad_v010_allanswers", (), ["tasks.squad_v010_allanswer.limit=10"])
    assert said.endswith("source: required key is missing; did you mean 'squad_v010_allanswers'?") or (
        "source: required key is missing; did you mean 'squad_v010_allanswers' or" in said
    )
    own = {"preprocess": {"kind": "span_corruption"}}
    assert error_of("qqqq", tasks={"qqqq": own}).endswith("tasks.qqqq.source: required key is missing")


@pytest.mark.parametrize("rate", [0, -1, ".nan", "x"])
def test_a_wrong_rate_is_reported_where_it_is(rate: Any) -> None:
    said = error_of("all_mix", (), [f"mixtures.all_mix.mixture.c4_v020_unsupervised={rate}"])
    assert said.startswith("command line: mixtures.all_mix.mixture.c4_v020_unsupervised: must be ") and "\n" not in said
