"""Adapters and LoRA of a BERT in runs: what trains, checkpoints, stages after them, and export."""

import json
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from bertjax.config.loading.load import build
from bertjax.errors import StoppedSafely, UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.restore import restore
from bertjax.models.layers import lora
from bertjax.models.peft_options import PeftOptions
from bertjax.tools import convert_hf
from bertjax.tools.export_adapter import export_adapter
from bertjax.tools.inspect import inspect_command
from bertjax.training import loop
from bertjax.training.checkpoint.locate import find
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.monitor.tracking import read_lines

LORA = {"kind": "lora", "lora_rank": 3, "lora_targets": ["query", "value", "mlp_output"]}
ADAPTERS = {"kind": "adapters", "adapter_size": 4}


def project_tree(home: Path) -> dict[str, Any]:
    return yaml.safe_load((home / "tiny.yaml").read_text().replace("5e-3", "0.005"))


@pytest.fixture(scope="module")
def train(tiny_project, tmp_path_factory, once) -> Callable[..., Path]:
    """Trains the questions of tiny.yaml from a run, or with its pre-training -> the run folder."""
    root = tmp_path_factory.mktemp("peft")

    def run(name: str, *trainables: Any, base: Path | None = None, **stage: Any) -> Path:
        tree = project_tree(tiny_project)
        tree["run"] |= {"name": name, "root": str(root)}
        *before, last = tree["stages"]
        last |= {"steps": 3, "evaluate": []}
        stages = [last | {"trainable": x, "name": f"qa{i}" if i else "qa"} for i, x in enumerate(trainables)]
        for one in stages[-1:]:
            one |= stage
        if base is not None:
            stages[0]["init_from"] = str(base)
            tree["tokenizer"] = {"path": str(root / "pretrained" / "tokenizer")}
            before = []
        tree["stages"] = [one | {"steps": 2, "evaluate": []} for one in before] + stages
        with once(), chdir(tiny_project):
            loop.train(build(tree), tiny_project, build_evaluators)
        return root / name

    return run


@pytest.fixture(scope="module")
def pretrained(train) -> Path:
    return train("pretrained")


@pytest.fixture(scope="module")
def tuned(train, pretrained) -> Callable[[str], Path]:
    """A run of one kind on the pre-trained weights, trained once. Not to be changed."""
    found: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in found:
            found[kind] = train(f"with-{kind}", LORA if kind == "lora" else ADAPTERS, base=pretrained)
        return found[kind]

    return of


def held(run: Path) -> dict[str, list]:
    """{parameter: shape, dtype and digest} in the last checkpoint of a run."""
    checkpoints = CheckpointReader(find(run).folder)
    leaves = checkpoints.items(checkpoints.committed_steps()[-1])[0]["leaves"]
    return {path.removeprefix("params/"): x for path, x in leaves.items() if path.startswith("params/")}


def params_of(run: Path, once: Callable) -> dict[str, np.ndarray]:
    with once():
        return jax.device_get(restore(run).params)


def start_line(run: Path) -> str:
    return next(x["init"] for x in read_lines(run / "metrics.jsonl") if x.get("event") == "start")


@pytest.mark.parametrize("kind", ["lora", "adapters"])
def test_only_what_should_moves_and_is_saved(kind, tuned, pretrained, once):
    run = tuned(kind)
    part = "/lora/" if kind == "lora" else "/adapter/"
    below = [path for path in held(run) if not path.startswith("heads/")]
    trains = {p for p in below if part in p or (kind == "adapters" and "/norm/" in p)}
    heads = {"heads/qa/kernel", "heads/qa/bias"}
    carried = {p for p in held(pretrained) if p.startswith("heads/")}
    assert trains and held(run).keys() == trains | heads | carried
    before, after = params_of(pretrained, once), params_of(run, once)
    shared = before.keys() & after.keys()
    assert {p for p in shared if before[p].tobytes() != after[p].tobytes()} == trains & shared
    assert all(np.any(x) for path, x in after.items() if path.endswith("/lora/b"))
    said = inspect_command(run, [], None, False)
    total = sum(x.size for x in after.values())
    trained = sum(after[p].size for p in trains | heads)
    own = total - sum(after[p].size for p in carried)
    assert f"{own:,}  (* trains: {trained:,})" in " ".join(said.replace("total", "").split()).replace(" (*", "  (*")


@pytest.mark.parametrize("kind", ["lora", "adapters"])
def test_a_stopped_stage_goes_on_bit_for_bit(kind, train, tuned, pretrained, stop_at):
    stop_at("qa", 2)
    trainable = LORA if kind == "lora" else ADAPTERS
    with pytest.raises(StoppedSafely):
        train(f"stopped-{kind}", trainable, base=pretrained)
    stop_at("qa", -1)
    assert held(train(f"stopped-{kind}", trainable, base=pretrained)) == held(tuned(kind))


def test_the_next_stage_of_lora(train, tuned, once):
    """The same options train on; any other stage starts from the sum; `fresh` leaves it out."""
    run = tuned("lora")
    before = params_of(run, once)
    merged = jax.device_get(lora.merge(before, 16 / 3))
    same = train("same", LORA | {"lora_dropout": 0.1}, base=run, optimizer={"learning_rate": 1e-30})
    after = params_of(same, once)
    assert after.keys() == before.keys()
    assert all(np.allclose(after[path], before[path], atol=1e-7) for path in before)
    whole = train("whole", "head", base=run)
    assert "LoRA of rank 3 merged into 4 kernels" in start_line(whole)
    after = params_of(whole, once)
    frozen = [path for path in after if not path.startswith("heads/")]
    assert set(frozen) == {path for path in merged if not path.startswith("heads/")}
    assert all(np.array_equal(after[path], merged[path]) for path in frozen)
    plain = params_of(train("plain", "head", base=run, fresh=["lora"]), once)
    assert all(np.array_equal(plain[path], before[path]) for path in frozen)


def test_lora_and_adapters_on_merged_lora(train, tuned, once, stop_at):
    """Checkpoints of what trains alone: the base is read, and merged, again."""
    run = tuned("lora")
    merged = jax.device_get(lora.merge(params_of(run, once), 16 / 3))
    stop_at("qa", 2)
    other = {"kind": "lora", "lora_rank": 2, "lora_alpha": 4, "lora_targets": ["key", "value"]}
    with pytest.raises(StoppedSafely):
        train("on-lora", other, base=run)
    stop_at("qa", -1)
    found = train("on-lora", other, base=run)
    assert "merged into 4 kernels" in start_line(found)
    for again in (found, train("adapters-on-lora", ADAPTERS | {"adapter_norms": "houlsby"}, base=run)):
        params = params_of(again, once)
        kernels = [path for path in params if path in merged and not path.startswith("heads/")]
        assert kernels and all(np.array_equal(params[path], merged[path]) for path in kernels)
        assert not any(path.endswith("qkv/kernel") for path in held(again))


def test_a_run_of_stages(train, once):
    """Pre-training, LoRA, then gradual unfreezing of the merged weights: the previous stage may hold LoRA alone."""
    run = train("stages", LORA, {"kind": "gradual", "episodes": 2})
    assert not any("/lora/" in path for path in held(run))


def test_after_adapters(train, tuned):
    """They are part of the function: other stages refuse them, or leave them out where that is asked for."""
    run = tuned("adapters")
    with pytest.raises(UserError, match="has adapters of size 4, this stage has none"):
        train("refused", "gradual", base=run)
    with pytest.raises(UserError, match=r"has an adapter .*, this stage none; set trainable.adapter_placement"):
        train("elsewhere", ADAPTERS | {"adapter_placement": "feed_forward"}, base=run)
    left = train("left", {"kind": "gradual", "episodes": 2}, base=run, fresh=["adapters"])
    assert "left unused: adapters" in start_line(left)
    assert not any("/adapter/" in path for path in held(left))


def test_export_merges_lora_and_refuses_adapters(tuned, tmp_path, once):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    run = tuned("lora")
    with once():
        convert_hf.export_checkpoint(run, tmp_path / "out")
        found = restore(run)
        model = found.program.build_model(found.params)
        ids = np.arange(1, 21).reshape(2, 10).astype(np.int32)
        ours = model(ids)
    name = json.loads((tmp_path / "out" / "config.json").read_text())["architectures"][0]
    theirs, info = getattr(transformers, name).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        logits = theirs.eval()(torch.tensor(ids).long()).start_logits
    np.testing.assert_allclose(np.asarray(ours["start"]), logits.numpy(), atol=1e-5)
    with pytest.raises(UserError, match="has adapters, for which transformers has no place"):
        convert_hf.export_checkpoint(tuned("adapters"), tmp_path / "adapters")
    assert not (tmp_path / "adapters").exists()


def test_an_adapter_folder_has_the_names_of_the_layers(tuned, tmp_path, once):
    """Names of peft: base_model.model.MODULE.lora_A.weight [r, inputs], and the head as in `modules_to_save`."""
    run = tuned("lora")
    with once():
        export_adapter(run, tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["r"] == 3 and config["lora_alpha"] == 16 and config["modules_to_save"] == ["qa_outputs"]
    assert config["base_model_name_or_path"] == str(find(run.parent / "pretrained").folder)
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    params = params_of(run, once)
    assert len(tensors) == 2 * len(config["target_modules"]) + 2 == 14
    a = tensors["base_model.model.bert.encoder.layer.1.attention.self.value.lora_A.weight"]
    np.testing.assert_array_equal(a, params["layers/1/attention/qkv/lora/value/a"].T)
    np.testing.assert_array_equal(tensors["base_model.model.qa_outputs.weight"], params["heads/qa/kernel"].T)
    with pytest.raises(UserError, match="has no LoRA"):
        export_adapter(tuned("adapters"), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers and peft
def test_peft_loads_an_adapter_folder(tuned, tmp_path, once):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    run = tuned("lora")
    with once():
        export_adapter(run, tmp_path / "peft")
        convert_hf.export_checkpoint(run.parent / "pretrained", tmp_path / "base")
        found = restore(run)
        ids = np.arange(1, 21).reshape(2, 10).astype(np.int32)
        ours = found.program.build_model(found.params)(ids)
    base = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    with torch.no_grad():
        out = model(input_ids=torch.tensor(ids).long())
        np.testing.assert_allclose(np.asarray(ours["start"]), out.start_logits.numpy(), atol=1e-5)
        np.testing.assert_allclose(np.asarray(ours["end"]), out.end_logits.numpy(), atol=1e-5)
        merged = model.merge_and_unload()(input_ids=torch.tensor(ids).long())
    np.testing.assert_allclose(np.asarray(ours["end"]), merged.end_logits.numpy(), atol=1e-5)


def test_a_moved_base(tuned, tmp_path, once):
    """Parameters are the same when the base is named, and its digest is checked."""
    run = tuned("lora")
    lone = shutil.copytree(find(run).folder, tmp_path / "alone")
    wanted = params_of(run, once)
    with once():
        found = restore(lone, base_model=run.parent / "pretrained").params
    assert all(np.array_equal(found[path], x) for path, x in wanted.items())
    with once():
        convert_hf.export_checkpoint(run, tmp_path / "there")
        convert_hf.export_checkpoint(lone, tmp_path / "moved", base=run.parent / "pretrained")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("there", "moved")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("trainable", "problem"),
    [
        ({"kind": "lora", "lora_targets": ["mlp_gate"]}, r"trainable.lora_targets: this bert model has no mlp_gate"),
        ({"kind": "lora", "lora_targets": ["query", "query"]}, "names a weight twice"),
        ({"kind": "lora", "lora_rank": 0}, "lora_rank"),
        ({"kind": "lora", "lora_targets": ["querry"]}, "lora_targets"),
    ],
)
def test_mistakes(trainable, problem, tiny_project):
    tree = project_tree(tiny_project)
    tree["stages"][1]["trainable"] = trainable
    with pytest.raises(UserError, match=problem):
        build(tree)


def test_saved_configurations_do_not_name_options_without_effect(tiny_project):
    tree = project_tree(tiny_project)
    saved = build(tree).model_dump(mode="json")["stages"][1]["trainable"]
    assert not any(name.startswith("lora_") or name == "adapter_placement" for name in saved)


def test_scale():
    """alpha / r, and rank-stabilized alpha / sqrt(r)."""
    from bertjax.config.schema.training import Trainable
    from bertjax.training.program import peft_options

    scale = lambda **given: peft_options(Trainable(kind="lora", **given)).lora_scale  # noqa: E731
    assert scale(lora_rank=4, lora_alpha=32) == 8 and scale(lora_rank=4, lora_alpha=32, lora_rslora=True) == 16
    assert scale() == 2.0
    assert peft_options(Trainable()) == peft_options(Trainable(kind="gradual")) == PeftOptions()
