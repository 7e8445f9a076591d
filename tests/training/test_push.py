"""Exports with a model card, and their upload to a fake Hub."""

import json
import shutil
from pathlib import Path

import fakehub
import numpy as np
import pytest
import yaml
from fakehub_upload import UploadHub
from huggingface_hub import ModelCard, constants
from safetensors.numpy import load_file

from bertjax.cli.main import main
from bertjax.config.loading.load import build
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.storage import hub_upload, model_hub
from bertjax.storage.hub_upload import CARD_MARK
from bertjax.training import loop

# huggingface_hub's own use of its HTTP library
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
WORDS = "good fine dull poor bright dark long short".split()
SIZES = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 16,
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, one_device) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    found = UploadHub(tmp_path / "cache", stored=tmp_path / "stored", tokens={"secret": "me"}, orgs={"org"})
    server = fakehub.install(found, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "secret")
    yield found
    server.shutdown()
    server.server_close()
    model_hub.forget()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A classifier that was evaluated at its last step."""
    folder = tmp_path_factory.mktemp("my private folder")
    rows = [{"text": f"{a} {b}", "label": "nice" if a < "e" else "bad"} for a in WORDS for b in WORDS]
    for name in ("train", "dev"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    data = lambda name: {  # noqa: E731
        "source": {"kind": "jsonl", "files": [str(folder / f"{name}.jsonl")]},
        "preprocess": {"kind": "classify", "sequence_length": 8},
    }
    config = build({
        "model": SIZES, "tokenizer": {"path": str(folder / "vocab.txt")},
        "run": {
            "root": str(folder / "runs"), "name": "reviews", "tensorboard": False, "compilation_cache_dir": None,
            "prepare_workers": 1,
        },
        "stages": [{
            "name": "classify", "data": data("train"), "objective": {"kind": "classification", "num_labels": 2},
            "steps": 4, "batch_size": 8, "optimizer": {"kind": "adamw", "learning_rate": 1e-3},
            "evaluate": [{"kind": "classification", "name": "dev", "data": data("dev")}],
        }],
    })  # fmt: skip
    loop.train(config, folder, build_evaluators)
    return folder / "runs/reviews"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs/reviews"))


def export(*words: object) -> int:
    return main(["export", *map(str, words)])


def scores_of(run: Path) -> dict[str, float]:
    return json.loads(next(run.glob("evaluations/*classify/dev.json")).read_text())["scores"]


def test_the_card_has_scores_data_configuration_and_commands(run, here, capsys):
    assert export(run, "out", "--license", "apache-2.0") == 0
    text = Path("out/README.md").read_text()
    card = ModelCard(text)
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "text-classification"
    assert {r.metric_type: r.metric_value for r in card.data.eval_results} == {
        name: pytest.approx(value, abs=1e-6) for name, value in scores_of(run).items()
    }
    assert "| dev | dev.jsonl | accuracy |" in text and "- `train`" not in text and "train.jsonl" in text
    assert "Labels: `bad`, `nice`." in text and "step 4" in text
    shown = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert shown["stages"][0]["steps"] == 4 and shown["stages"][0]["data"]["source"][0]["files"] == ["train.jsonl"]
    assert str(here) not in text and "my private folder" not in text


def test_a_pushed_model_is_the_exported_folder_and_can_be_used_by_its_name(run, hub, capsys):
    assert export(run, "out", "--push", "org/reviews", "--private") == 0
    assert capsys.readouterr().out.strip() == f"{hub.url}/org/reviews/commit/" + fakehub.commit_of(
        hub.models["org/reviews"]["main"]
    )
    there = hub.files("org/reviews")
    there.pop(".gitattributes")
    assert there == {p.name: p.read_bytes() for p in Path("out").iterdir()}
    assert hub.private == {"org/reviews"}
    answers = []
    for name in ("org/reviews", str(run)):
        assert main(["predict", "classify", name, "good fine", "--dtype", "float32"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] and answers[0].split()[0] in ("nice", "bad")


def test_a_name_without_an_owner_is_the_users_own_and_needs_no_folder(run, hub):
    assert export(run, "--push", "reviews") == 0
    assert "me/reviews" in hub.models and not Path("out").exists()
    assert 'from_pretrained("me/reviews")' in hub.files("me/reviews")["README.md"].decode()


def test_a_second_push_replaces_weights_of_other_names_and_keeps_a_card_by_hand(run, hub, capsys):
    assert export(run, "--push", "org/m") == 0
    folder = hub.models["org/m"]["main"]
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"old")
    (folder / "README.md").write_text("# My own words")
    (folder / "notes.txt").write_text("kept")
    assert export(run, "--push", "org/m") == 0
    there = hub.files("org/m")
    assert "model-00001-of-00002.safetensors" not in there and there["notes.txt"] == b"kept"
    assert there["README.md"] == b"# My own words"
    assert "it is kept" in capsys.readouterr().err


def test_branches_and_pull_requests(run, hub, capsys):
    assert export(run, "--push", "org/m") == 0
    assert export(run, "--push", "org/m", "--revision", "v2") == 0
    assert hub.commits[-1]["revision"] == "v2" and set(hub.models["org/m"]) == {"main", "v2"}
    capsys.readouterr()
    assert export(run, "--push", "org/m", "--create-pr") == 0
    assert capsys.readouterr().out.strip().endswith("/org/m/discussions/1")


@pytest.mark.parametrize(
    ("name", "environment", "said"),
    [
        ("org/bad name", {}, "not a name that the Hub allows"),
        ("a/b/c", {}, "not a name that the Hub allows"),
        ("org/m", {"HF_TOKEN": "wrong"}, "the Hub refuses the token"),
        ("other/m", {}, "the token may not write there"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(run, hub, capsys, monkeypatch, name, environment, said):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    capsys.readouterr()
    assert export(run, "--push", name) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert said in error[-1] and f"--push {name}" in error[-1] and not any("Traceback" in line for line in error)
    assert not hub.models


@pytest.mark.parametrize("part", ["lfs/", "/commit/", "preupload", "repos/create"])
def test_an_upload_that_fails_is_one_line(run, hub, capsys, monkeypatch, part):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.fails[part] = 500
    assert export(run, "out", "--push", "org/m") == 2
    assert "the upload failed" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not hub.commits and (Path("out") / "model.safetensors").is_file()


def test_without_login_or_network_nothing_is_exported(run, hub, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert export(run, "out", "--push", "org/m") == 2
    assert "not logged in" in capsys.readouterr().err and not Path("out").exists()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert export(run, "out", "--push", "org/m") == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err and not Path("out").exists()


def test_options_without_push_are_refused(run, capsys):
    assert export(run) == 2 and "OUT" in capsys.readouterr().err
    assert export(run, "out", "--revision", "v2") == 2 and "--revision is for --push" in capsys.readouterr().err
    assert not Path("out").exists()


def test_an_imported_model_gets_no_card(run, hub):
    assert export(run, "first") == 0
    assert main(["import", "first", "runs/again"]) == 0
    assert export("runs/again", "second") == 0 and export("first", "third") == 0
    assert not Path("second/README.md").exists() and not Path("third/README.md").exists()
    a, b = (load_file(f"{name}/model.safetensors") for name in ("first", "third"))
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_the_mark_is_in_every_card():
    assert CARD_MARK.startswith("<!--") and CARD_MARK.endswith("-->") and hub_upload.CARD == "README.md"
