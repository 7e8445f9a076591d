"""Names of other trainers: the table fits the schema and transformers' own fields, and errors use it."""

import ast
import importlib.util
import json
from pathlib import Path

import pytest

from bertjax.cli import main
from bertjax.config.loading import foreign_names
from bertjax.config.loading.introspect import all_paths
from bertjax.config.loading.load import load
from bertjax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TABLE = foreign_names.table()


def test_every_option_that_the_table_names_exists():
    there = set(all_paths())
    wrong = {line.name: option for line in TABLE.values() for option in line.ours if option not in there}
    assert not wrong
    assert {"stages.STAGE.optimizer.b1", "tasks.TASK.source.files", "run.checkpoint.save_every"} <= there


def test_every_name_is_one_that_users_write_and_has_an_answer():
    for line in TABLE.values():
        assert line.name.isidentifier() and line.name == line.name.lower(), line
        assert line.ours or len(line.note) > 10, line
    assert len(TABLE) > 300


def fields_of(module: str, section: str) -> list[str]:
    """The fields of a dataclass, without importing its package, which takes seconds."""
    package = importlib.util.find_spec("transformers")
    if package is None or not package.submodule_search_locations:
        pytest.skip("transformers is not installed")
    tree = ast.parse((Path(package.submodule_search_locations[0]) / f"{module}.py").read_text(encoding="utf-8"))
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == section)
    return [node.target.id for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]


def test_every_field_of_transformers_training_arguments_is_in_the_table():
    fields = fields_of("training_args", "TrainingArguments")
    fields += fields_of("training_args_seq2seq", "Seq2SeqTrainingArguments")
    assert len(fields) > 90
    assert not [name for name in fields if name not in TABLE], "give each its option here, or say why there is none"


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load(ROOT / "configs" / "debug" / "cpu.yaml", overrides)
    return str(error.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("max_steps=100", "max_steps: unknown key (got 100); in bertjax: stages.STAGE.steps; STAGE is pretrain or qa"),
        ("stages.qa.lr=1e-5", "unknown key (got 1e-05); in bertjax: stages.qa.optimizer.learning_rate"),
        ("stages.qa.optimizer.adam_beta1=0.8", "in bertjax: stages.qa.optimizer.b1"),
        ("trainer.train_batch_size=512", "in bertjax: stages.STAGE.batch_size (rows over all devices)"),
        ("gin.DROPOUT_RATE=0.1", "in bertjax: model.dropout_rate"),
        ("partitioning.PjitPartitioner.num_partitions=2", "in bertjax: mesh.tensor"),
        ("run.output_dir=x", "in bertjax: run.root and run.name"),
        ("push_to_hub=true", "in bertjax: `bertjax export RUN --push ORG/NAME`"),
        ("objective.kind=mlm_nsp", "did you mean 'stages.STAGE.objective'?"),  # our own, in the wrong place
    ],
)
def test_an_unknown_key_is_explained(override, words):
    assert words in refused(override)


def test_several_names_in_one_section_are_all_explained():
    found = refused("trainer={num_train_steps: 5, checkpointer: {save_interval: 3}, own: 1}")
    assert "in bertjax: stages.STAGE.steps; in bertjax: run.checkpoint.save_minutes (in minutes)" in found


def test_options_on_the_command_line(capsys):
    for option, words in (
        ("--per-device-train-batch-size=8", "stages.STAGE.batch_size (here rows over all devices"),
        ("--ici_fsdp_parallelism", "mesh.fsdp"),
        ("--WARMUP_RATIO", "stages.STAGE.optimizer.warmup_ratio"),
    ):
        assert main.main(["train", str(ROOT / "configs" / "debug" / "cpu.yaml"), option]) == 2
        assert f"in bertjax: {words}" in capsys.readouterr().err


def test_the_page_has_the_table():
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    command = "python -m bertjax.config.loading.foreign_names"
    assert page.endswith(foreign_names.render()), f"the table changed: put the output of `{command}` at the end"


def test_the_configurations_of_the_page_load(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in page.split("```yaml\n")[1:]]
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    for name, sizes in (
        ("google-bert/bert-base-uncased", {"model_type": "bert"}),
        ("google-t5/t5-base", {"model_type": "t5"}),
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, encoding="utf-8")
        assert load(path).stages
