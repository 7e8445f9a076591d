"""What `inspect` says of a configuration: episodes, and what holds at a step."""

import json

import pytest

from bertjax.config.loading.load import build
from bertjax.errors import UserError
from bertjax.tools.inspect import inspect_command, inspect_config

QA = {
    "name": "qa", "data": {"source": {"kind": "stdlib_qa"}, "preprocess": {"kind": "span_qa", "sequence_length": 64}},
    "objective": {"kind": "span_qa"}, "trainable": "gradual", "batch_size": 8,
}  # fmt: skip
PRETRAIN = {"name": "pretrain", "steps": 100, "data": {"source": {"kind": "stdlib_docs"}}}
MODEL = {
    "vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 128,
}  # fmt: skip
LAYER = 16 * 48 + 48 + 16 * 16 + 16 + 2 * (16 * 32) + 32 + 16 + 4 * 16
HEAD = 16 * 2 + 2
EMBEDDINGS = (100 + 128 + 2 + 2) * 16


def config(**length: object):
    return build({"model": MODEL, "stages": [PRETRAIN, QA | length]})


def test_a_step_is_placed_in_its_stage_and_episode():
    found = inspect_config(config(steps=40), 125)
    assert [e["trained"] for e in found["stages"][1]["episodes"]] == [LAYER + HEAD, 2 * LAYER + HEAD + EMBEDDINGS]
    at = found["at"]
    assert (at["stage"], at["stage_step"], at["episode"]) == ("qa", 25, 1)
    assert at["learning_rate"] == pytest.approx(1e-4 * (1 - 25 / 40))
    assert inspect_config(config(steps=40), None)["at"]["stage"] == "pretrain"


def test_episodes_of_a_stage_in_epochs_are_parts_of_it():
    found = inspect_config(config(epochs=2), None)
    assert [(e["start"], e["stop"]) for e in found["stages"][1]["episodes"]] == [(0, 0.5), (0.5, 1)]
    assert found["stages"][1]["epochs"] == 2 and "steps" not in found["stages"][1]
    assert found["at"]["stage"] == "pretrain"


def test_a_step_is_not_placed_where_the_length_is_unknown():
    assert inspect_config(config(epochs=2), 99)["at"]["stage_step"] == 99
    with pytest.raises(UserError, match="stages.qa.epochs: .* step 100 cannot be placed"):
        inspect_config(config(epochs=2), 100)


def test_text_and_json(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(json.dumps({"model": MODEL, "stages": [PRETRAIN, QA | {"epochs": 0.5}]}))
    text = inspect_command(file, [], None, False)
    assert "stage qa: span_qa, 0.5 epochs of 8 rows" in text and "episode 1: 50% to 100%" in text
    assert json.loads(inspect_command(file, [], 3, True))["at"]["stage_step"] == 3
