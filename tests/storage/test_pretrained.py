"""Names of pretrained models: what they mean, and what is fetched from the Hub and from object stores."""

import json
import shutil
from pathlib import Path

import fakegcs
import fakehub
import pytest

from bertjax.errors import StorageError, UserError
from bertjax.storage import model_hub, pretrained
from bertjax.storage.pretrained import hub_name, locate

SMALL = {"config.json": '{"model_type": "bert"}', "vocab.txt": "[PAD]\n", "tokenizer_config.json": "{}"}
UNREAD = {"pytorch_model.bin": "x", "tf_model.h5": "x", "README.md": "x", "onnx/model.safetensors": "x"}


def folder(path: Path, **files: str) -> Path:
    for name, content in (SMALL | UNREAD | files).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content)
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    found = fakehub.Hub(tmp_path / "cache")
    server = fakehub.install(found, monkeypatch)
    monkeypatch.chdir(tmp_path)
    yield found
    server.shutdown()
    server.server_close()
    model_hub.forget()


def offline(monkeypatch) -> None:
    from huggingface_hub import constants

    model_hub.forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("bert-base-uncased", ("bert-base-uncased", None)),
        ("google-t5/t5-base", ("google-t5/t5-base", None)),
        ("org/name@v1.0", ("org/name", "v1.0")),
        ("org/name@refs/pr/3", ("org/name", "refs/pr/3")),
        *(
            (path, None)
            for path in ("./name", "/models/name", "~/name", "a/b/c", "runs/x/", "vocab.txt", "a b", "", ".")
        ),
        *((path, None) for path in ("here", "here/inside", "gs://bucket/name")),
    ],
)
def test_which_names_are_on_the_hub(tmp_path, monkeypatch, name, meaning):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "inside").mkdir(parents=True)
    assert hub_name(name) == meaning


def test_a_path_that_does_not_exist_is_no_such_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("./name", "/gone/name", "a/b/c"):
        with pytest.raises(UserError, match="no such folder"):
            locate(name)
    with pytest.raises(UserError, match="too long for the name of a file"):
        locate("x" * 300)


def test_small_files_come_first_and_weights_once(hub):
    commit = hub.add("org/name", folder(Path("hub"), **{"model.safetensors": "weights"}))
    small = locate("org/name", weights=False)
    assert sorted(hub.fetched()) == sorted(SMALL)
    assert (small.commit, str(small)) == (commit, f"org/name@{commit}")
    whole = locate("org/name")
    assert hub.fetched() == ["model.safetensors"] and whole.path == small.path
    model_hub.forget()  # another process
    assert locate("org/name").path == whole.path and hub.fetched() == []
    assert (whole.path / "model.safetensors").read_text() == "weights"
    assert {p.name for p in whole.path.iterdir()} == {*SMALL, "model.safetensors"}


def test_shards_are_fetched_with_their_index(hub):
    shards = {f"model-0000{n}-of-00002.safetensors": str(n) for n in (1, 2)}
    hub.add("org/name", folder(Path("hub"), **{"model.safetensors.index.json": "{}", **shards}))
    found = locate("org/name").path
    assert {p.name for p in found.iterdir()} == {*SMALL, "model.safetensors.index.json", *shards}


def test_a_revision_is_another_model_and_the_newest_commit_is_asked_for(hub):
    old = hub.add("org/name", folder(Path("old"), **{"model.safetensors": "old"}), "v1")
    new = hub.add("org/name", folder(Path("new"), **{"model.safetensors": "new"}))
    assert locate("org/name@v1").commit == old and locate("org/name").commit == new
    assert locate(f"org/name@{old}").commit == old
    newer = hub.add("org/name", folder(Path("newer"), **{"model.safetensors": "newer"}))
    assert locate("org/name").commit == new  # a process goes on with the commit that it began with
    model_hub.forget()
    assert locate("org/name").commit == newer


def test_without_network_the_cache_is_read(hub, monkeypatch):
    commit = hub.add("org/name", folder(Path("hub"), **{"model.safetensors": "weights"}))
    with_weights = locate("org/name")
    hub.add("org/small", folder(Path("hub")))
    locate("org/small", weights=False)
    offline(monkeypatch)
    assert locate("org/name") == with_weights and locate(f"org/name@{commit}").path == with_weights.path
    assert locate("org/small", weights=False).commit
    for name, said in {
        "org/small": "its cache here does not have model.safetensors and the Hub cannot be reached",
        "org/other": "org/other: no such folder, not in the Hub's cache, and the Hub cannot be reached",
        "org/name@v2": "org/name@v2: no such folder, not in the Hub's cache",
    }.items():
        with pytest.raises(UserError, match=said) as caught:
            locate(name)
        assert "HF_HUB_OFFLINE is set" in str(caught.value) and "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_said_at_once(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"the Hub cannot be reached \(ConnectError: .*run `hf download org/name`"):
        locate("org/name")


def test_what_the_hub_refuses_is_one_line(hub):
    hub.add("org/pickle", folder(Path("pickle")))
    hub.add("org/gated", folder(Path("gated"), **{"model.safetensors": "x"}))
    hub.gated.add("org/gated")
    hub.add("org/empty", folder(Path("empty")))
    (Path("empty") / "config.json").unlink()
    for name, said in {
        "org/gone": "org/gone: no such folder, and there is no such model on the Hub; check the name",
        "org/pickle@v9": "org/pickle: no such folder, and the Hub has no revision 'v9' of it",
        "org/pickle": "org/pickle: has pytorch_model.bin on the Hub and no model.safetensors; name a revision",
        "org/gated": "org/gated: .*the model is gated: ask for access on its page",
        "org/empty": "org/empty: has no config.json on the Hub",
    }.items():
        with pytest.raises(UserError, match=said) as caught:
            locate(name, weights=name != "org/empty")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert hub.fetched() == []


def test_errors_name_the_model_and_not_its_copy(hub):
    hub.add("org/name", folder(Path("hub")))
    place = locate("org/name", weights=False)
    with pytest.raises(UserError, match="^org/name/config.json: wrong$"), pretrained.name_in_errors(place):
        raise UserError(f"{place.path / 'config.json'}: wrong")


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    return fakegcs.install(tmp_path, monkeypatch) / "bucket"


def test_a_folder_in_a_bucket_is_copied_once_and_again_when_it_changes(bucket):
    folder(bucket / "hf", **{"model.safetensors": "weights"})
    small = locate("gs://bucket/hf", weights=False).path
    assert {p.name for p in small.iterdir()} == set(SMALL)
    whole = locate("gs://bucket/hf/").path
    assert whole == small and {p.name for p in whole.iterdir()} == {*SMALL, "model.safetensors"}
    first = (whole / "model.safetensors").stat().st_ino
    assert (locate("gs://bucket/hf").path / "model.safetensors").stat().st_ino == first
    (bucket / "hf" / "model.safetensors").write_text("WEIGHTS")
    assert (locate("gs://bucket/hf").path / "model.safetensors").read_text() == "WEIGHTS"
    (bucket / "hf" / model_hub.FITTED).write_text("{}")
    assert (locate("gs://bucket/hf").path / model_hub.FITTED).is_file()
    (bucket / "hf" / model_hub.FITTED).unlink()  # a threshold that is no longer wanted
    assert {p.name for p in locate("gs://bucket/hf").path.iterdir()} == {*SMALL, "model.safetensors"}
    (bucket.parent / "FAULT").write_text("unreachable")
    with pytest.raises(StorageError, match=r"^gs://bucket/hf: cannot be reached"):
        locate("gs://bucket/hf")


def test_of_a_run_in_a_bucket_the_newest_step_is_copied(bucket):
    for stage, step in (("00-a", 9), ("01-b", 5), ("01-b", 10)):
        for part in ("state/d/0", "meta/metadata", "digest/metadata", "_CHECKPOINT_METADATA"):
            place = bucket / "run" / "checkpoints" / stage / str(step) / part
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps({"step": step}))
    (bucket / "run" / "config.yaml").write_text("a: 1\n")
    (bucket / "run" / "tokenizer").mkdir()
    (bucket / "run" / "tokenizer" / "vocab.txt").write_text("x\n")
    small = locate("gs://bucket/run", weights=False).path
    assert (small / "config.yaml").is_file() and (small / "tokenizer" / "vocab.txt").is_file()
    step = small / "checkpoints" / "01-b" / "10"
    assert (step / "meta" / "metadata").is_file() and not (step / "state").exists()
    assert locate("gs://bucket/run").path == small and (step / "state" / "d" / "0").is_file()
    assert (step / "_CHECKPOINT_METADATA").is_file()
    assert [p.name for p in step.parent.iterdir()] == ["10"] and not (small / "checkpoints" / "00-a").exists()
    stage = locate("gs://bucket/run/checkpoints/00-a").path
    assert (stage / "9" / "state" / "d" / "0").is_file()
    (bucket / "run" / "checkpoints" / "01-b" / "10" / "fitted.json").write_text("{}")
    locate("gs://bucket/run")
    assert (step / "fitted.json").is_file()
    (bucket / "run" / "checkpoints" / "01-b" / "10" / "fitted.json").unlink()
    locate("gs://bucket/run")
    assert not (step / "fitted.json").exists() and (step / "state" / "d" / "0").is_file()
    (bucket / "run" / "checkpoints" / "01-b" / "10").rename(bucket / "run" / "checkpoints" / "01-b" / "20")
    locate("gs://bucket/run")
    assert [p.name for p in step.parent.iterdir()] == ["20"]
    shutil.rmtree(bucket / "run")
    with pytest.raises(UserError, match=r"^gs://bucket/run: no such folder"):
        locate("gs://bucket/run")
