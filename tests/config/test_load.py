"""Reading configurations: the YAML subset, extends, overrides, error lines, sizes from a model folder, round trips."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.config.loading import yaml_reader
from bertjax.config.loading.error_messages import format_value
from bertjax.config.loading.load import (
    build,
    dump,
    fingerprint,
    identity_diff,
    load,
)
from bertjax.config.loading.pretrained import read_model_fields
from bertjax.config.schema.run import Config
from bertjax.config.schema.training import Trainable
from bertjax.errors import UserError

NO_NSP = "stages.pretrain.objective.nsp_weight=0"
TEXT = "data: {source: {files: [a.txt]}}"
BASE = f"""\
model: {{hidden_size: 64, num_attention_heads: 4, num_hidden_layers: 2, intermediate_size: 128}}
tasks:
  qa: {{source: {{kind: squad, files: [train.json]}}, preprocess: {{kind: span_qa, doc_stride: 64}}}}
stages:
  - name: pretrain
    {TEXT}
    steps: 10
  - name: squad
    data: qa
    objective: {{kind: span_qa}}
    epochs: 2
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def save(text: str | bytes, name: str = "c.yaml") -> str:
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return save


def lines_of(path: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    lines = str(caught.value).splitlines()
    assert all(len(line) <= 300 for line in lines)
    return lines


# ---- the YAML subset ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E5", 1e5), ("-.5", -0.5), ("3.", 3.0), (".inf", float("inf")), ("30_522", 30522), ("-7", -7),
        ("true", True), ("false", False), ("null", None), ("~", None), ("", None),
        ("True", "True"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("010", "010"), ("0x10", "0x10"),
        ("12:30:45", "12:30:45"), ("2024-01-02", "2024-01-02"), ("1_0", "1_0"), ("'1'", "1"), ("1.2.3", "1.2.3"),
        ("9" * 5000, "9" * 5000), ("[1, a]", [1, "a"]), ("{a: {b: 1}}", {"a": {"b": 1}}), ("=", "="),
        ("<<: 1", {"<<": 1}),
    ],
)  # fmt: skip
def test_scalars_are_what_they_look_like(text, value):
    found = yaml_reader.to_plain(yaml_reader.parse(text, str, []))
    assert found == value and type(found) is type(value)


SCALARS = st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False) | st.text(max_size=20)


@given(st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner)))
@settings(deadline=None, max_examples=200)
def test_what_is_dumped_is_read_back_equal(value):
    assert yaml_reader.to_plain(yaml_reader.parse(yaml_reader.dump({"v": value}), str, [])) == {"v": value}


@given(st.text(max_size=60) | st.text("{}[]:,-&*!|>'\"#%@`\n a1.", max_size=60))
@settings(deadline=None, max_examples=300)
def test_any_text_is_a_value_or_a_one_line_error(text):
    try:
        yaml_reader.parse(text, lambda line: f"f:{line}", [])
    except UserError as error:
        assert re.match(r"f:\d+: ", str(error)) and len(str(error).splitlines()) == 1 and len(str(error)) <= 300


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "c.yaml: the file is empty"),
        (b"# only a comment\n", "c.yaml:1: expected sections"),
        (b"- a\n", "c.yaml:1: expected sections"),
        (b"a: 1\nb: \xff\n", "c.yaml:2: not UTF-8"),
        (b"\x7fELF\x00\x01\x02", "c.yaml:1: the character 0x7f"),
        (b"a: 1\nb: \x00\n", "c.yaml:2: the character 0x0"),
        (b"a: [1\n", "c.yaml:2: not valid YAML"),
        (b"a: 1\n\tb: 2\n", "c.yaml:2: not valid YAML"),
        (b"a: 1\n---\nb: 2\n", "c.yaml:2: not valid YAML"),
        (b"x: 1\na: !!python/object/apply:os.system [id]\n", "c.yaml:2: not valid YAML: the tag"),
        (b"a: !!int '3'\n", "c.yaml:1: not valid YAML: the tag"),
        (b"a: *nothing\n", "c.yaml:1: not valid YAML"),
        (b"a: &x [*x]\n", "c.yaml:1: aliases expand"),
        (b"? [a]\n: 1\n", "c.yaml:1: a key must be"),
        (b"a: " + b"[" * 5000, "c.yaml:1: not valid YAML: more than 40 levels"),
        (b"a: " + b"x" * 1_000_001, "c.yaml: larger than 1,000,000 bytes"),
    ],
)
def test_unreadable_files_name_the_line(write, content, expected):
    (line,) = lines_of(write(content))
    assert line.startswith(expected)


def test_alias_bomb_is_refused_quickly(write):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (line,) = lines_of(write("\n".join(levels)))
    assert "aliases expand" in line


def test_missing_file_and_folder(write, tmp_path):
    write(BASE, "config.yaml")
    assert lines_of("confg.yaml") == ["confg.yaml: no such file; did you mean 'config.yaml'?"]
    assert "is a folder" in lines_of(str(tmp_path))[0]


# ---- error lines ----------------------------------------------------------------------------------------------------


def test_every_problem_at_once_each_with_its_line(write):
    text = BASE.replace("steps: 10", "steps: 0\n    learning_rate: 1e-4").replace("files: [train", "fils: [train")
    lines = lines_of(write(text + "run: {seed: -1, wandb: on}\nrun2: 3\nrun2: 4\n"), "modle.hidden_size=3", "nonsense")
    assert lines == [
        "c.yaml:15: run2: duplicate key (first at c.yaml:14)",
        "command line: nonsense: expected key.path=value",
        "c.yaml:13: run.seed: must be greater than or equal to 0 (got -1)",
        "c.yaml:13: run.wandb: must be true or false (got 'on')",
        "c.yaml:3: tasks.qa.source.files: required key is missing",
        "c.yaml:3: tasks.qa.source.fils: unknown key (got [\"train.json\"]); did you mean 'files'?",
        "c.yaml:7: stages.pretrain.steps: must be greater than 0 (got 0)",
        "c.yaml:8: stages.pretrain.learning_rate: unknown key (got 0.0001); did you mean 'optimizer.learning_rate'?",
        "c.yaml:14: run2: unknown key (got 3); did you mean 'run'?",
        "command line: modle: unknown key (got {\"hidden_size\": 3}); did you mean 'model'?",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "model.hidden_act=gelo",  # no near name: another activation is another function
            "hidden_act: must be 'gelu', 'gelu_new', 'relu', 'silu' or 'quick_gelu' (got 'gelo')",
        ),
        ("model.hidden_size=[1]", "model.hidden_size: must be an integer (got [1])"),
        ("model.hidden_size='64'", "model.hidden_size: must be an integer (got '64')"),
        ("model.hidden_size=64.5", "model.hidden_size: must be an integer (got 64.5)"),
        ("model.hidden_size=true", "model.hidden_size: must be an integer (got true)"),
        ("model=3", "model: must be a section (key: value) (got 3)"),
        ("stages.pretrain.optimizer.learning_rate=.nan", "stages.pretrain.optimizer.learning_rate: must be a finite"),
        ("stages.0.optimizer.learning_rate=-1", "stages.pretrain.optimizer.learning_rate: must be greater than 0"),
        ("stages.0.objective.kind=mlm", "stages.pretrain.objective.kind: 'kind' must be one of: mlm_nsp, span_qa, "),
        ("stages.0.data.source.fles=[x]", "stages.pretrain.data.source.fles: unknown key"),
        ("stages.0.data.preprocess.doc_stride=4", "data.preprocess.doc_stride: unknown key (got 4); it is a key"),
        ("stages.0.trainable=hed", "'head', 'features', 'gradual', 'adapters' or 'lora' (got 'hed')"),
        ("stages.pretain.steps=3", "stages.pretain: no such element; must be one of pretrain, squad or its index; did"),
        ("stages.7.steps=3", "stages.7: no such element"),
        ("stages.0.data={mixture: [qa], rat: equal}", "stages.pretrain.data.rat: unknown key (got 'equal'); did you"),
        ("stages.0.data={mixture: {qa: x}, rate: explicit}", "stages.pretrain.data.mixture.qa: must be a number (got"),
        ("run.segments=foo", "run.segments: must be 'auto', 'list' or 'scan', or must be a list (got 'foo')"),
        ("run.segments=[1, 0]", "run.segments.1: must be greater than 0 (got 0)"),
        ("run.name=../x", "run.name: must be letters, digits"),
        ("run.name=/abs", "run.name: must be letters, digits"),
        ('run.root="a\\0b"', "run.root: control characters are not allowed"),
        ("run.name=[", "run.name: not valid YAML"),
        ("hidden_size=3", "hidden_size: unknown key (got 3); did you mean 'model.hidden_size'?"),
        ("model.num_attention_heads=5", "model.num_attention_heads: num_attention_heads (5) must divide hidden_size"),
        ("stages.squad.data=squad", "stages.squad: stage 'squad' uses task 'squad', which is not under 'tasks:'"),
        ("model.config_from=nowhere", "model.config_from: nowhere: no such folder"),
    ],
)  # fmt: skip
def test_wrong_values_are_reported_where_they_were_given(write, override, expected):
    (line,) = lines_of(write(BASE), override)
    assert expected in line
    assert line.startswith(("command line: ", "c.yaml:"))


def test_rules_between_keys_point_at_the_line(write):
    text = BASE.replace("num_attention_heads: 4", "num_attention_heads: 5")
    assert lines_of(write(text))[0].startswith("c.yaml:1: model.num_attention_heads: num_attention_heads (5) must")
    (line,) = lines_of(write(BASE), "tasks.qa.preprocess.sequence_length=600")
    assert line.startswith("c.yaml:8: stages.squad: stage 'squad': sequence_length (600) is more than")


def test_many_problems_are_cut_off(write):
    lines = lines_of(write(BASE + "".join(f"zz{i}: 1\n" for i in range(500))))
    assert len(lines) == 21 and lines[-1] == "... and 480 more problems"


def test_secrets_are_not_repeated(write):
    (line,) = lines_of(write(BASE + "run: {api_key: hf_very_private}\n"))
    assert "hf_very_private" not in line and "'***'" in line
    (line,) = lines_of(write(BASE + "extra: {api_key: hf_very_private}\n"))
    assert "hf_very_private" not in line
    assert format_value(yaml_reader.to_nodes({"password": "p"}, "x")) == '{"password": "***"}'


def test_environment_is_not_read(write, monkeypatch):
    monkeypatch.setenv("BERTJAX_CANARY", "canary")
    assert load(write(BASE), ["run.root=${BERTJAX_CANARY}"]).run.root == "${BERTJAX_CANARY}"


# ---- extends and overrides ------------------------------------------------------------------------------------------


def test_extends_merges_sections_and_replaces_lists(write, tmp_path):
    (tmp_path / "base").mkdir()
    write(BASE, "base/one.yaml")
    middle = "extends: one.yaml\nrun: {seed: 3, name: two}\ntasks: {qa: {preprocess: {max_query_length: 32}}}\n"
    write(middle, "base/two.yaml")
    child = "extends: base/two.yaml\nrun: {seed: 4}\nstages: {squad: {epochs: 3}, pretrain: {optimizer: {b1: 0.8}}}\n"
    config = load(write(child))
    assert (config.run.seed, config.run.name, config.model.hidden_size) == (4, "two", 64)
    assert config.tasks["qa"].preprocess.doc_stride == 64 and config.tasks["qa"].preprocess.max_query_length == 32
    assert [stage.name for stage in config.stages] == ["pretrain", "squad"]
    assert config.stages[1].epochs == 3 and config.stages[0].optimizer.b1 == 0.8 and config.stages[0].steps == 10
    only = load(write(f"extends: base/one.yaml\nstages: [{{name: only, steps: 1, {TEXT}}}]\n", "d.yaml"))
    assert [stage.name for stage in only.stages] == ["only"]


def test_errors_name_the_file_that_holds_the_value(write):
    write(BASE.replace("steps: 10", "steps: -1"), "base.yaml")
    lines = lines_of(write("extends: base.yaml\n\nrun: {sed: 1}\n"))
    assert lines[0] == "c.yaml:3: run.sed: unknown key (got 1); did you mean 'seed'?"
    assert lines[1].startswith("base.yaml:7: stages.pretrain.steps: must be greater than 0")


def test_extends_cycle_missing_and_wrong_type(write):
    write("extends: b.yaml\n", "a.yaml")
    write("x: 1\nextends: a.yaml\n", "b.yaml")
    assert lines_of("a.yaml") == ["b.yaml:2: extends: 'a.yaml' leads back to itself"]
    assert lines_of(write("extends: aa.yaml\n"))[0].endswith("did you mean 'a.yaml'?")
    assert lines_of(write("extends: [a.yaml]\n")) == ["c.yaml:1: extends: expected the path of a file"]
    assert lines_of(write("extends: c.yaml\n")) == ["c.yaml:1: extends: 'c.yaml' leads back to itself"]


def test_a_new_kind_drops_the_old_kinds_keys(write):
    path = write(BASE)
    assert load(path, ["tasks.qa.source.kind=stdlib_qa"]).tasks["qa"].source[0].split == "train"
    assert load(path, ["tasks.qa.source={kind: stdlib_qa, split: heldout}"]).tasks["qa"].source[0].split == "heldout"
    assert load(path, ["stages.0.data.source.kind=stdlib_docs"]).stages[0].data.source[0].kind == "stdlib_docs"
    assert load(path, ["stages.0.data={mixture: [qa]}"]).stages[0].data.mixture == ["qa"]
    kept = load(path, ["stages.0.optimizer={learning_rate: 1e-3}", "stages.0.optimizer.kind=adamw"])
    assert kept.stages[0].optimizer.learning_rate == 1e-3, "optimizer.kind is an option, not a union"
    child = "extends: c.yaml\nstages: {squad: {data: {source: {kind: stdlib_qa}, preprocess: {kind: span_qa}}}}\n"
    assert load(write(child, "d.yaml")).stages[1].data.source[0].kind == "stdlib_qa"


def test_overrides_in_every_spelling(write):
    path = write(BASE)
    words = ["stages.pretrain.steps=1e2", "--run.seed=5", "--mesh.fsdp", "2", "run={name: x}", "run.name=y"]
    config = load(path, [*words, "run.remat='full'"])
    assert (config.stages[0].steps, config.run.seed, config.mesh.fsdp, config.run.name) == (100, 5, 2, "y")
    assert type(config.stages[0].steps) is int and config.run.remat == "full"
    assert load(path, ["stages.0.trainable=gradual"]).stages[0].trainable.kind == "gradual"
    assert load(path, ["stages.0.optimizer.clip_norm="]).stages[0].optimizer.clip_norm is None
    write(BASE + "    trainable: gradual\n", "g.yaml")
    assert load("g.yaml", ["stages.squad.trainable.episodes=3"]).stages[1].trainable == Trainable(
        kind="gradual", episodes=3
    )


def test_evaluations_are_patched_by_name_or_kind(write):
    mlm = "{kind: mlm, data: {source: {kind: stdlib_docs}}}"
    text = BASE.replace("steps: 10", f"steps: 10\n    evaluate: [{mlm}, {mlm.replace('mlm,', 'mlm, name: second,')}]")
    config = load(write(text), ["stages.pretrain.evaluate.second.batch_size=7", "stages.0.evaluate.mlm.batch_size=8"])
    assert [item.batch_size for item in config.stages[0].evaluate] == [8, 7]
    (line,) = lines_of("c.yaml", "stages.0.evaluate.second.batch_sze=7")
    where = "command line: stages.pretrain.evaluate.second.batch_sze"
    assert line == f"{where}: unknown key (got 7); did you mean 'batch_size'?"


# ---- sizes from a model folder --------------------------------------------------------------------------------------


def test_sizes_from_hugging_face_folders(write, tmp_path):
    (tmp_path / "hf").mkdir()
    # The published config.json of distilbert-base-uncased (transformers: DistilBertConfig).
    distil = {
        "activation": "gelu", "architectures": ["DistilBertForMaskedLM"], "attention_dropout": 0.1, "dim": 768,
        "dropout": 0.1, "hidden_dim": 3072, "initializer_range": 0.02, "max_position_embeddings": 512,
        "model_type": "distilbert", "n_heads": 12, "n_layers": 6, "pad_token_id": 0, "qa_dropout": 0.1,
        "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": False, "tie_weights_": True, "vocab_size": 30522,
    }  # fmt: skip
    write(json.dumps(distil), "hf/config.json")
    model = load(
        write(BASE[BASE.index("tasks:") :]), ["model.config_from=hf", "model.hidden_dropout_prob=0.2", NO_NSP]
    ).model
    assert (model.family, model.num_hidden_layers, model.type_vocab_size) == ("distilbert", 6, 0)
    assert model.hidden_dropout_prob == 0.2 and model.config_from is None
    (line,) = lines_of("c.yaml", "model.config_from=hf", "model.family=bert")
    assert line == "command line: model.family: hf holds a distilbert (got 'bert')"

    bert = {"model_type": "bert", "hidden_size": 96, "num_attention_heads": 5, "hidden_act": "gelu_pytorch_tanh"}
    write(json.dumps(bert), "hf/config.json")
    assert read_model_fields("hf") == {
        "family": "bert", "hidden_size": 96, "num_attention_heads": 5, "hidden_act": "gelu_new",
    }  # fmt: skip
    (line,) = lines_of("c.yaml", "model.config_from=hf")
    assert line.startswith("command line (from hf): model.num_attention_heads: num_attention_heads (5) must divide")
    wrong = {"{": "not valid JSON", '{"model_type": "gpt2"}': "must be bert, distilbert, roberta", "[]": "must be bert"}
    for content, reason in wrong.items():
        write(content, "hf/config.json")
        assert reason in lines_of("c.yaml", "model.config_from=hf")[0]


def test_sizes_from_a_run_folder(write, tmp_path):
    config = load(write(BASE))
    step = tmp_path / "runs" / "a" / "checkpoints" / "00-pretrain" / "10"
    step.mkdir(parents=True)
    (tmp_path / "runs" / "a" / "config.yaml").write_text(dump(config))
    write(f"stages: [{{name: s, steps: 1, {TEXT}}}]\n", "d.yaml")
    for folder in ("runs/a", "runs/a/checkpoints/00-pretrain", str(step)):
        assert load("d.yaml", [f"model.config_from={folder}"]).model == config.model


# ---- round trip and identity ----------------------------------------------------------------------------------------


def test_dump_round_trips_and_stays_readable_by_others(write):
    awkward = ["run.name='1e5'", "run.root='010'", "tokenizer.path='on'", "model.layer_norm_eps=1e-12"]
    config = load(write(BASE), awkward)
    text = dump(config)
    assert load(write(text, "again.yaml")) == config and dump(load("again.yaml")) == text
    assert Config.model_validate(yaml.safe_load(text)) == config
    assert build(config.model_dump(mode="json")) == config
    assert build(config.model_dump(mode="json"), ["run.seed=9"], where="checkpoint").run.seed == 9
    wrong = config.model_dump(mode="json") | {"stages": [config.stages[0].model_dump() | {"steps": 0}]}
    with pytest.raises(UserError, match="^checkpoint: stages.pretrain.steps: must be greater"):
        build(wrong, where="checkpoint")


def test_fingerprint_follows_what_is_learned_and_nothing_else(write):
    path = write(BASE)
    config = load(path)
    same = load(path, ["mesh.fsdp=2", "run.name=x", "stages.0.grad_accum=4", "run.compute_dtype=float32"])
    assert fingerprint(same) == fingerprint(config) and identity_diff(config, same) == []
    other = load(path, ["run.seed=1", "stages.0.optimizer.b1=0.8", "model.hidden_size=128"])
    assert fingerprint(other) != fingerprint(config)
    changed = ["model.hidden_size: 64 -> 128", "stages.0.optimizer.b1: 0.9 -> 0.8", "seed: 0 -> 1"]
    assert identity_diff(config, other) == changed
