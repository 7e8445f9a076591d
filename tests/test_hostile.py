"""Hostile files: none runs code or reaches a file outside its folder, and each is refused in one line or is just data.

Every payload makes a file `canary`. The controls show that it does where a reader trusts it.
"""

import importlib
import io
import json
import os
import pickle
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from fuzz_targets import _RUN as RUN_FILES
from tfds_folder import write_tfds

from bertjax.cli.main import main
from bertjax.data.jobs import scratch_dir
from bertjax.errors import StorageError, UserError
from bertjax.progress.log_file import LogFile
from bertjax.storage import atomic
from bertjax.storage.staging import exclusive_lock
from bertjax.training.checkpoint.lock import WriterLock
from bertjax.training.monitor.goodput import GoodputLog
from bertjax.training.monitor.phases import Phases
from bertjax.training.monitor.tracking import Tracker

ROOT = Path(__file__).resolve().parents[1]
CODE = "open('canary', 'w').close()\n"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
BERT = {
    "model_type": "bert", "vocab_size": 7, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
    "intermediate_size": 32, "max_position_embeddings": 64,
}  # fmt: skip
CONFIG = """\
model: {vocab_size: 7, hidden_size: 16, num_attention_heads: 2, num_hidden_layers: 1, intermediate_size: 32}
tokenizer: {path: %s}
run: {compilation_cache_dir: null, tensorboard: false, prepared_dir: prepared, prepare_workers: 1}
tasks: {t: {source: %s, preprocess: {sequence_length: 32}}}
stages: [{name: s, data: t, steps: 1, batch_size: 2}]
"""


class Payload:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("canary",)


def put(name: str, content: object) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def object_array() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([Payload()], dtype=object), allow_pickle=True)
    return out.getvalue()


def slip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("../../canary", "x")
        archive.writestr("train.jsonl", '{"text": "a b"}\n')
    return out.getvalue()


def prepare(source: str, tokenizer: str = "vocab.txt") -> list[str]:
    put("c.yaml", CONFIG % (tokenizer, source))
    return ["prepare", "c.yaml"]


def huggingface(files: dict[str, object]) -> Callable[[], list[str]]:
    def make() -> list[str]:
        for name, content in files.items():
            put(f"data/{name}", content)
        return prepare("{kind: huggingface, name: ./data}")

    return make


def model_folder(files: dict[str, object], argv: list[str] | None = None) -> Callable[[], list[str]]:
    def make() -> list[str]:
        for name, content in ({"config.json": BERT, "vocab.txt": "\n".join(PIECES)} | files).items():
            put(f"hf/{name}", content)
        put("hf/payload.py", CODE)
        return argv or prepare("{kind: text, files: [text.txt]}", "hf")

    return make


def tfds(name: str = "toy", **named: str) -> Callable[[], list[str]]:
    def make() -> list[str]:
        path = write_tfds(Path("tf"), "toy", {"text": "text"}, {"train": [{"text": "a b"}]}) / "features.json"
        features = json.loads(path.read_text())
        features["featuresDict"]["features"]["text"] = {"content": "{}", "text": {}} | named
        put(str(path), features)
        return prepare(f"{{kind: tfds, name: '{name}', data_dir: tf}}")

    return make


def run_of_others() -> list[str]:
    put("run/config.yaml", "plugins: [payload.py]\n" + CONFIG % ("vocab.txt", "{kind: text, files: [text.txt]}"))
    put("run/environment.json", {})
    return ["prepare", "run/config.yaml"]


def tagged(where: str) -> list[str]:
    put("c.yaml", CONFIG % ("vocab.txt", "{kind: text, files: [text.txt]}") + f"x: {where}\n")
    return ["prepare", "c.yaml"]


APPLY = "!!python/object/apply:os.system ['touch canary']"
LINES = '{"text": "a b"}\n' * 9
SCRIPT = f"import datasets\n{CODE}class Data(datasets.GeneratorBasedBuilder):\n    pass\n"
STATE = {"_data_files": [{"filename": "x.arrow"}], "_fingerprint": "f", "_format_type": "payload", "_split": "train"}
ARTIFACTS: dict[str, tuple[Callable[[], list[str]], str]] = {  # how it is made and used -> what the line says
    "features.json": (tfds(pythonClassName="payload.Feature"), "features.json: pythonClassName 'payload.Feature'"),
    "features.json of earlier versions": (tfds(type="payload.Feature"), "features.json: type 'payload.Feature'"),
    "features.json, a module beside tfds": (tfds(pythonClassName="tensorflow_datasets_x.F"), "pythonClassName"),
    "features.json by another name": (tfds("Toy:1.0.0", pythonClassName="payload.Feature"), "pythonClassName"),
    "a data set of a community": (tfds("others:toy"), "others:toy: data sets of a community come with code"),
    "an array of objects": (huggingface({"train.npy": object_array()}), "data"),
    "a pickle among the data": (huggingface({"train.pkl": pickle.dumps(Payload())}), "data"),
    "a data set with a script": (huggingface({"data.py": SCRIPT}), "data"),
    "YAML in a data card": (huggingface({"README.md": f"---\nx: {APPLY}\n---\n", "train.jsonl": LINES}), ""),
    "an archive that leaves its folder": (huggingface({"train.zip": slip()}), ""),
    "a saved data set with a type of its own": (huggingface({"state.json": STATE, "dataset_info.json": {}}), "data"),
    "tokenizer_config.json": (
        model_folder({"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["payload.T", None]}}}), "auto_map",
    ),
    "config.json": (
        model_folder({"config.json": BERT | {"auto_map": {"AutoModel": "payload.M"}, "trust_remote_code": True}},
                     ["import", "hf", "out"]), "auto_map",
    ),
    "pytorch_model.bin": (
        model_folder({"pytorch_model.bin": pickle.dumps(Payload())}, ["import", "hf", "out"]), "pytorch_model.bin",
    ),
    "a YAML tag": (lambda: tagged(APPLY), "the tag"),
    "a YAML tag that imports": (lambda: tagged("!!python/name:payload.x"), "the tag"),
    "plugins of a downloaded run": (run_of_others, "uses the plugin payload.py"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, on the path of modules too, where `import payload` runs it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "payload", raising=False)
    put("payload.py", CODE)
    put("tensorflow_datasets_x.py", CODE)
    put("vocab.txt", "\n".join(PIECES) + "\n")
    put("text.txt", "a b a.\nb a b.\n\na a.\nb.\n")
    return tmp_path


@pytest.mark.parametrize("case", ARTIFACTS)
def test_artifacts_run_nothing(folder, capsys, case):
    make, says = ARTIFACTS[case]
    argv = make()
    code = main(argv)
    err = capsys.readouterr().err
    assert not list(folder.rglob("canary")) and not list(folder.parent.glob("canary"))
    lines = [line for line in err.splitlines() if not line.startswith("bertjax prepare ...")]  # on a slow machine
    if says:
        assert code == 2 and len(lines) == 1 and says in lines[0], err
    assert "Traceback" not in err


def trusting_import() -> None:
    importlib.import_module("payload")


def trusting_tfds() -> None:
    from tensorflow_datasets.core.features.feature import FeatureConnector

    with pytest.raises(ValueError, match="Unrecognized"):
        FeatureConnector.cls_from_name("payload.Feature")


CONTROLS: dict[str, Callable[[], object]] = {
    "import": trusting_import,
    "tfds": trusting_tfds,
    "pickle": lambda: pickle.loads(pickle.dumps(Payload())),
    "numpy": lambda: np.load(io.BytesIO(object_array()), allow_pickle=True),
    "yaml": lambda: yaml.unsafe_load(APPLY),
}


@pytest.mark.parametrize("case", CONTROLS)
def test_the_payloads_run_where_they_are_trusted(case):
    CONTROLS[case]()
    assert Path("canary").exists()


# ---- the current directory is a folder of data ----------------------------------------------------------------------


POOL = """
import sys
del sys.path[0]
from bertjax.data.jobs.worker_pool import WorkerPool

if __name__ == "__main__":
    pool = WorkerPool(1, None, int)
    print(pool.result(pool.submit(len, "four")))
    pool.close()
"""


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (["-c", "import argparse"], True),  # the control
        (["-m", "bertjax", "configs"], False),
        (["-P", "-m", "bertjax.plan"], False),
        (["-c", POOL], False),
    ],
    ids=["control", "bertjax", "bertjax.plan", "workers"],
)  # fmt: skip
def test_modules_of_the_current_directory(folder, words, runs):
    for name in ("argparse", "yaml", "numpy", "runpy", "pickle", "tokenize", "queue"):
        put(f"{name}.py", CODE)
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, input="", env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert Path("canary").exists() == runs, done.stderr
    if words[-1] == "configs":
        assert done.returncode == 0 and "debug/cpu" in done.stdout
    if words[-1] == POOL:
        assert done.stdout == "4\n", done.stderr


# ---- files that are something else ----------------------------------------------------------------------------------


def goodput(folder: Path) -> None:
    GoodputLog(folder, Phases(0.0), is_primary=True).start_stage(0, 0)


def metrics(folder: Path) -> None:
    with Tracker(folder, stages={"s": 1}, tensorboard=False, wandb=False) as tracker:
        tracker.event("s", 0, "x")


def damaged_metrics(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text("damaged\n")
    with Tracker(folder, stages={"s": 1}, tensorboard=False, wandb=False) as tracker:
        tracker.rewind([], "s", 0)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("writer.lock", WriterLock),
        ("goodput.jsonl", goodput),
        ("metrics.jsonl", metrics),
        ("metrics-damaged.jsonl", damaged_metrics),
    ],
)
def test_links_in_a_run_are_not_followed(folder, name, write):
    put("precious", "precious")
    Path("run").mkdir()
    (folder / "run" / name).symlink_to(folder / "precious")
    with pytest.raises(StorageError, match=f"{name}.*is a symbolic link, which is not followed; remove it"):
        write(folder / "run")
    assert Path("precious").read_text() == "precious"
    (folder / "run" / name).unlink()
    held = write(folder / "run")  # the control: a file
    assert (folder / "run" / name).stat().st_size
    if isinstance(held, WriterLock):
        held.release()


def test_links_at_the_names_of_locks_of_prepared_data(folder):
    put("precious", "precious")
    Path("scratch").mkdir()
    (folder / "scratch" / "lock").symlink_to(folder / "precious")
    lock = exclusive_lock(Path("scratch/lock"))
    for use in (lambda: scratch_dir._acquire(folder / "scratch"), lock.__enter__):
        with pytest.raises(OSError, match="is a symbolic link, which is not followed"):
            use()
    assert Path("precious").read_text() == "precious"
    (folder / "scratch" / "lock").unlink()
    _, held = scratch_dir._acquire(folder / "scratch")
    held.close()


def test_a_linked_log_is_left_alone(folder):
    put("precious", "precious")
    (folder / "train.log").symlink_to(folder / "precious")
    LogFile(folder / "train.log").write("a line", 0.0)
    LogFile(folder / "own.log").write("a line", 0.0)
    assert Path("precious").read_text() == "precious" and "a line" in Path("own.log").read_text()


def test_links_at_the_names_of_unfinished_files(folder, monkeypatch):
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda size: "known")
    put("precious", "precious")
    (folder / ".out.json.known.partial").symlink_to(folder / "precious")
    with pytest.raises(FileExistsError):
        atomic.write_text_atomic(folder / "out.json", "new")
    assert Path("precious").read_text() == "precious" and not Path("out.json").exists()


def test_a_pipe_or_device_is_written_and_not_replaced(folder):
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    atomic.write_json_atomic(folder / "pipe", {"a": 1}, durable=True)
    assert json.loads(os.read(reader, 100)) == {"a": 1} and stat.S_ISFIFO(os.stat("pipe").st_mode)
    os.close(reader)
    put("file", "x")
    os.replace("file", "pipe")  # the control: what a rename does
    assert stat.S_ISREG(os.stat("pipe").st_mode)


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="no /dev/full")
def test_the_full_device(capsys):
    before = os.stat("/dev/full")
    assert main(["schema", "--output", "/dev/full"]) == 4
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "No space left on device" in err
    after = os.stat("/dev/full")
    assert stat.S_ISCHR(after.st_mode) and (after.st_ino, after.st_rdev) == (before.st_ino, before.st_rdev)
    assert not list(Path("/dev").glob(".full.*"))


PIPES = [
    "config.yaml", "environment.json", "goodput.jsonl", "metrics.jsonl", "evaluations/00-s/mlm.json",
    "evaluations/00-s/mlm.nbest.json", "rewinds.json", "checkpoints/00-s/2/meta/metadata", "tokenizer/sha256.json",
]  # fmt: skip


@pytest.mark.parametrize("name", PIPES)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_in_a_run_are_not_read(folder, name, kind):
    """An archive can hold both: opening a pipe waits for ever, /dev/zero fills the memory."""
    from bertjax.config.loading.step_meta import read_meta
    from bertjax.data.tokenizers.files import is_intact
    from bertjax.report.page import write_report
    from bertjax.training.monitor import goodput
    from bertjax.training.triggers.rewind import read_rewinds

    run = folder / "run"
    for other, content in RUN_FILES.items():
        (folder / other).parent.mkdir(parents=True, exist_ok=True)
        (folder / other).write_bytes(content)
    path = run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    write_report(run, folder / "report.html")
    assert (goodput.read(run) is None) == (name == "goodput.jsonl")
    if "meta" in name and "checkpoints" in name:
        with pytest.raises(UserError, match="is a pipe or device"):
            read_meta(run / "checkpoints" / "00-s" / "2")
    if name == "rewinds.json":
        with pytest.raises(StorageError, match="is a pipe or device"):
            read_rewinds(run, "s")
    if name == "tokenizer/sha256.json":
        assert is_intact(path.parent) is False
