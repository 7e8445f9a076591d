"""Configurations of earlier versions: renamed keys, defaults that were other ones, and the same fingerprints."""

from pathlib import Path

import pytest
import yaml

from bertjax.config.loading.load import build, build_saved, dump, fingerprint, load, load_saved
from bertjax.errors import UserError

# As commit be330a7 understood it; FINGERPRINT is what it computed.
OLD = """\
model: {family: t5, vocab_size: 128, d_model: 16, d_kv: 8, d_ff: 32, num_layers: 2, num_heads: 2}
tokenizer: {kind: sentencepiece, path: x.json}
mesh: {slices: 2, rules: {sequence: tensor}}
run: {name: old, compile_cache: null, prepared: gs://b/p, max_bad_steps: 5, checkpoint: {best_is: lowest}}
tasks:
  slices: {source: {kind: squad, files: [a.json]}, preprocess: {kind: text_to_text, prompt: squad}}
stages:
  - name: tune
    data: slices
    objective: {kind: text_to_text}
    steps: 3
    trainable: {kind: adapters, adapter_size: 4}
    init_from: runs/base
    init_base: runs/moved
    fresh: [adapters]
"""
FINGERPRINT = "8c6d96f211695ea8e9c278cf0841ef8a16505c1167f37fa6a7e7a8381ac11f40"


def test_a_saved_configuration_with_old_keys_is_the_same_run(tmp_path):
    (tmp_path / "config.yaml").write_text(OLD)
    for config in (load_saved(tmp_path / "config.yaml"), build_saved(yaml.safe_load(OLD), where="meta")):
        run = config.run
        assert (config.mesh.dcn, run.compilation_cache_dir, run.prepared_dir) == (2, None, "gs://b/p")
        assert (run.max_nonfinite_steps, run.checkpoint.best_mode) == (5, "lowest")
        assert config.stages[0].adapter_base == "runs/moved" and list(config.tasks) == ["slices"]
        assert fingerprint(config) == FINGERPRINT
        assert build(config.model_dump(mode="json")) == config


def test_an_old_key_in_a_file_or_an_override_names_the_new_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(OLD)
    with pytest.raises(UserError) as caught:
        load("c.yaml", ["run.compile_cache=x", "stages.tune.init_base=y"])
    assert sorted(str(caught.value).splitlines()) == [
        "c.yaml:3: mesh.slices: now called 'dcn' (got 2)",
        "c.yaml:4: run.checkpoint.best_is: now called 'best_mode' (got 'lowest')",
        "c.yaml:4: run.max_bad_steps: now called 'max_nonfinite_steps' (got 5)",
        "c.yaml:4: run.prepared: now called 'prepared_dir' (got 'gs://b/p')",
        "command line: run.compile_cache: now called 'compilation_cache_dir' (got 'x')",
        "command line: stages.tune.init_base: now called 'adapter_base' (got 'y')",
    ]


def test_a_saved_configuration_keeps_the_defaults_of_its_version(tmp_path: Path):
    """Runs written before `profile` existed had run_squad.py's rules."""
    stage = {
        "name": "qa",
        "steps": 1,
        "batch_size": 1,
        "objective": {"kind": "span_qa"},
        "data": {"source": {"kind": "stdlib_qa"}, "preprocess": {"kind": "span_qa", "doc_stride": 128}},
    }
    kept = {"stages": [stage]}
    assert build_saved(kept, where="kept").stages[0].data.preprocess.profile == "bert"
    assert build(kept).stages[0].data.preprocess.profile == "hf"
    changed = build_saved(kept, ["stages.qa.data.preprocess.profile=hf"], where="kept")
    assert changed.stages[0].data.preprocess.profile == "hf"
    (tmp_path / "config.yaml").write_text("\n".join(x for x in dump(build(kept)).split("\n") if "profile: hf" not in x))
    assert load_saved(tmp_path / "config.yaml").stages[0].data.preprocess.profile == "bert"
