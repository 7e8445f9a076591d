"""The command line itself: help, mistakes, dispatch, exit codes, and that nothing heavy is imported early."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import bertjax
from bertjax.cli import main as main_module
from bertjax.cli.main import COMMANDS, main
from bertjax.errors import DivergedError, StoppedSafely, StorageError, UserError

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "stages: [{name: s, steps: 1, data: {source: {files: [a.txt]}}}]\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    (tmp_path / "c.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def fake(monkeypatch):
    """Puts a stand-in where a command looks for its function; -> the arguments it was called with."""

    def install(module: str, name: str, result: object = None) -> list:
        calls: list = []

        def call(*args: object, **named: object) -> object:
            calls.append((*args, named) if named else args)
            if isinstance(result, BaseException):
                raise result
            return result

        stand_in = types.ModuleType(module)
        setattr(stand_in, name, call)
        package, _, leaf = module.rpartition(".")
        monkeypatch.setitem(sys.modules, module, stand_in)
        monkeypatch.setattr(
            sys.modules[package] if package in sys.modules else __import__(package), leaf, stand_in, False
        )
        return calls

    return install


def said(capsys: pytest.CaptureFixture[str], argv: list[str], code: int = 2) -> str:
    assert main(argv) == code
    out, err = capsys.readouterr()
    return out if code == 0 else err


# ---- help and mistakes ----------------------------------------------------------------------------------------------


def test_help_names_every_command_and_each_has_an_example(capsys):
    overview = said(capsys, ["--help"], 0)
    assert said(capsys, [], 0) == overview == said(capsys, ["-h"], 0)
    for name in COMMANDS:
        assert f"  {name} " in overview
        text = said(capsys, [*name.split(), "--help"], 0)
        assert text.startswith(f"usage: bertjax {name}") and f"bertjax {name}" in text.split("\nexamples")[1]
        assert max(map(len, text.splitlines())) <= 120
    assert "  predict answer " in said(capsys, ["predict", "--help"], 0) and "130" in overview


def test_every_prediction_takes_the_base_of_adapters(capsys):
    """The error about a base that moved names --base."""
    for name in ("evaluate", "export", *(name for name in COMMANDS if name.startswith("predict "))):
        assert "--base MODEL" in said(capsys, [*name.split(), "--help"], 0), name
    assert said(capsys, ["--version"], 0) == f"bertjax {bertjax.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("tain", "bertjax: unknown command 'tain'; did you mean 'train'?"),
        ("zzz", "bertjax: unknown command 'zzz'; try --help"),
        ("--hlep", "bertjax: unknown option '--hlep'; did you mean '--help'?"),
        ("train", "bertjax train: missing: CONFIG; try --help"),
        ("train c.yaml --devcie cpu", "bertjax train: unknown option '--devcie'; did you mean '--device'?"),
        ("train c.yaml --seed 3", "bertjax train: unknown option '--seed'; did you mean 'run.seed'?"),
        ("train c.yaml --seed=3", "bertjax train: unknown option '--seed=3'; did you mean 'run.seed'?"),
        ("train c.yaml --device tpux", "bertjax train: argument --device: invalid choice: 'tpux' (choose from"),
        ("train c.yaml --device", "bertjax train: argument --device: expected one argument"),
        ("train c.yaml oops", "bertjax train: expected key.path=value (got 'oops')"),
        ("train c.yaml run.sed=3", "command line: run.sed: unknown key (got 3); did you mean 'seed'?"),
        ("train d.yaml", "d.yaml: no such file; did you mean 'c.yaml'?"),
        ("evaluate nowhere", "nowhere: no such folder"),
        ("evaluate . --step x", "bertjax evaluate: argument --step: must be an integer above 0 (got 'x')"),
        ("evaluate . --step -1", "bertjax evaluate: argument --step"),
        ("predict", "bertjax predict: expected fill-mask, answer, classify, tag, embed or generate"),
        ("predict fil-mask", "bertjax predict: expected fill-mask, answer, classify, tag, embed or generate (got 'fil"),
        ("predict fill-mask", "bertjax predict fill-mask: missing: "),
        ("predict fill-mask . a --file c.yaml", "bertjax predict fill-mask: give either TEXT or --file"),
        ("predict embed . a --output v.txt", "v.txt: the name of --output must end with .npy or .jsonl"),
        ("predict classify . --file no.csv", "'no.csv': no such file or folder"),
        ("predict classify . --file c.yaml --pair x", "bertjax predict classify: --pair is for TEXT"),
        ("predict answer . --file c.yaml --question q", "bertjax predict answer: give either --file or --question"),
        ("predict answer . --context c", "bertjax predict answer: give --question and either --context or"),
        ("predict fill-mask . a --top-k 0", "bertjax predict fill-mask: argument --top-k: must be an integer"),
        ("predict answer . --question q", "bertjax predict answer: give --question and either --context"),
        ("predict answer . --question q --context-file no.txt", "no.txt: no such file"),
        ("predict answer . --question q --context c --documents .", "bertjax predict answer: give --question and"),
        ("predict answer . --question q --context c --column x", "bertjax predict answer: --column needs --documents"),
        ("predict answer . --question q --context c --top-passages 5", "bertjax predict answer: --top-passages needs"),
        ("predict answer . --question q --documents none", "'none': no such file or folder"),
        ("predict answer . --question q --documents c.yaml", "c.yaml: is not a document: .txt, .text, .md"),
        ("predict answer . --file c.yaml --output a.xml", "a.xml: the name of --output must end with .jsonl, .csv"),
        ("compare-predictions . .", ".: answers need their questions: give --data"),
        ("compare-predictions . . --data c.yaml", ".: no predictions in this folder; name a file, or run"),
        ("compare-predictions c.yaml c.yaml --data c.yaml --label x", "c.yaml: holds answers, whose gold answers are"),
        ("predict answer . --question q --null-threshold x", "bertjax predict answer: argument --null-threshold"),
        ("predict answer . --question q --null-threshold nan", "bertjax predict answer: argument --null-threshold"),
        ("predict answer . --question q --min-probability 2", "bertjax predict answer: argument --min-probability"),
        ("predict generate", "bertjax predict generate: missing: MODEL"),
        ("predict generate nowhere a", "nowhere: no such folder"),
        ("predict generate . a --file c.yaml", "bertjax predict generate: give either TEXT or --file"),
        ("predict generate . --file no.txt", "'no.txt': no such file or folder"),
        ("predict generate . --file c.yaml --file d.txt", "bertjax predict generate: --file is given twice; give it"),
        ("predict generate . a --beam 2 b --beam=3", "bertjax predict generate: --beam is given twice; give it once"),
        ("evaluate . --step 1 --step 1 --step x", "bertjax evaluate: argument --step: must be an integer above 0 (got"),
        ("tasks none --registry c.yaml --registry d.yaml", "'d.yaml': no such file or folder"),  # one that may be
        ("predict generate . a --output a.csv", "a.csv: the name of --output must end with .jsonl"),
        ("predict generate . a --sample --early-stopping true", "bertjax predict generate: --sample and beam search"),
        ("predict generate . a --min-new-tokens -1", "bertjax predict generate: argument --min-new-tokens: must be"),
        ("predict generate . a --repetition-penalty 0", "bertjax predict generate: argument --repetition-penalty: mus"),
        ("predict generate . a --num-return-sequences 0", "bertjax predict generate: argument --num-return-sequences"),
        ("predict generate .", "standard input: contains no text; give one text per line"),
        ("predict generate . a --top-p 0.5", "bertjax predict generate: --top-p needs --sample"),
        ("predict generate . a --sample --beam 2", "bertjax predict generate: --sample and beam search options"),
        ("predict generate . a --sample --beam-rules t5x", "bertjax predict generate: --sample and beam search"),
        ("predict generate . a --sample --length-penalty 1", "bertjax predict generate: --sample and beam search"),
        ("predict generate . a --sample --top-p 1.5", "bertjax predict generate: argument --top-p: must be above"),
        (
            "predict generate . a --length-penalty -3",
            "bertjax predict generate: argument --length-penalty: must be a number from -2 to 100 (got '-3')",
        ),
        ("predict generate . a --temperature 0", "bertjax predict generate: argument --temperature: must be"),
        ("import . ./c.yaml", "'./c.yaml': already exists; name a new folder"),
        ("export nowhere out", "nowhere: no such folder"),
        ("report . --output no/x.html", "'no': no such file or folder"),
        ("report . --output .", "'.': is a folder; name a file"),
        ("report . --output /sys/x.html", "'/sys': no file can be written here ("),
        ("score", "bertjax score: expected squad"),
        ("score squad c.yaml", "bertjax score squad: missing: PREDICTIONS"),
        ("score squad c.yaml no.json", "'no.json': no such file or folder"),
        ("doctor now", "bertjax doctor: unexpected argument (got 'now')"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_in_one_line(here, capsys, argv, line):
    err = said(capsys, argv.split())
    assert err.startswith(line) and err.count("\n") == 1 and len(err) <= 301
    assert sorted(path.name for path in here.iterdir()) == ["c.yaml"]


# ---- dispatch -------------------------------------------------------------------------------------------------------


def test_train_hands_over_the_config_and_the_current_folder(here, fake, monkeypatch):
    fake("bertjax.evaluation.evaluators.build", "build_evaluators")
    calls = fake("bertjax.training.loop", "train")
    assert main(["train", "--mesh.fsdp", "2", "c.yaml", "run.seed=3", "--device", "cpu", "--run.name=x"]) == 0
    ((config, base, evaluators),) = calls
    assert (config.run.seed, config.run.name, config.mesh.fsdp, base) == (3, "x", 2, here) and callable(evaluators)
    assert os.environ["JAX_PLATFORMS"] == "cpu"


def test_evaluate_prints_json(here, fake, capsys):
    calls = fake("bertjax.tools.evaluate", "evaluate_command", {"f1": 0.5})
    out = said(capsys, ["evaluate", ".", "--step", "20", "--stage", "qa", "run.seed=1", "--name", "squad"], 0)
    assert json.loads(out) == {"f1": 0.5}
    said(capsys, ["evaluate", ".", "--best", "squad/f1", "--output", str(here / "scores"), "--dtype", "float32"], 0)
    assert calls == [
        (Path("."), 20, "qa", "squad", ["run.seed=1"], None, None),
        (Path("."), None, None, None, ["run.compute_dtype=float32"], "squad/f1", here / "scores"),
    ]
    assert "no such file or folder" in said(capsys, ["evaluate", ".", "--output", str(here / "none" / "x.json")], 2)


def test_predictions_take_text_as_it_is(here, capsys, monkeypatch):
    calls = []
    for name in ("fill_mask", "answer", "classify", "embed"):
        monkeypatch.setattr(
            f"bertjax.tools.predict.{name}", lambda *a, **_: calls.append(a) or [{"value": 2.0, "text": "é"}]
        )
    assert "é" in said(capsys, ["predict", "fill-mask", ".", "x = [MASK].y=1", "b", "--top-k", "2"], 0)
    (here / "t.txt").write_text("context\n")
    said(capsys, ["predict", "answer", ".", "--question", "q=1?", "--context-file", "t.txt", "--dtype", "bfloat16"], 0)
    assert said(capsys, ["predict", "classify", ".", "a=1", "--pair", "b"], 0) == "2.0000\té\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("é\nf\n".encode())))
    said(capsys, ["predict", "embed", ".", "--no-normalize", "--batch-size", "4"], 0)
    fill, answer, classify, embed = calls
    assert list(fill[0].texts) == ["x = [MASK].y=1", "b"] and fill[1:] == (2, None)
    assert answer[1:] == ("q=1?", "context\n", {
        "n_best": 3, "null_threshold": None, "min_probability": None, "min_confidence": None,
    })  # fmt: skip
    assert answer[0].dtype == "bfloat16" and answer[0].checkpoint == Path(".")
    assert classify[0].texts == ["a=1"] and classify[1:] == ("b", None, None)
    assert embed[0].texts == ["é", "f"] and embed[0].batch_size == 4 and embed[1:] == (None, False, None, None)


def test_texts_to_generate_from(here, fake, capsys, monkeypatch):
    """From the command line, a file or standard input; options may stand between; plain text out, or JSON."""
    answers = [{"generated": "é", "score": -0.5}, {"generated": "", "score": -1.0}]
    found = [{"text": "a", "generated": "é", "answers": answers}, {"text": "b", "generated": "c"}]
    calls, options = [], []

    def generate(*args, **kwargs):
        calls.append(args)
        options.append(kwargs)
        return found

    monkeypatch.setattr("bertjax.tools.predict.generate", generate)
    beams = "--beam 4 a b=1 --beam-rules transformers --length-penalty -0.5 --early-stopping never"
    assert said(capsys, f"predict generate . {beams}".split(), 0) == "é\n\nc\n"
    (here / "t.txt").write_bytes("x y\r\n\nz\u2028z\n".encode())
    limits = "--max-new-tokens 9 --min-new-tokens 2 --no-repeat-ngram-size 3 --repetition-penalty 1.5"
    assert json.loads(said(capsys, f"predict generate . --file t.txt --json {limits}".split(), 0)) == found
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("é\nf".encode())))
    sampling = "--sample --temperature 0.5 --top-k 3 --top-p 0.9 --max-input-tokens 7 --num-return-sequences 3"
    said(capsys, f"predict generate . {sampling} --batch-size 2".split(), 0)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert said(capsys, "predict generate .".split()).startswith("standard input: not UTF-8")
    assert said(capsys, ["predict", "generate", ".", "\udcff"]).startswith("TEXT: '\\udcff' is not UTF-8 text")
    shared = {"seed": 1, "column": None}
    assert options == [
        {**shared, "scored": scored, "max_input_tokens": n} for scored, n in ((False, None), (True, None), (False, 7))
    ]
    requests = [call[0] for call in calls]
    assert [[one["text"] for one in request.records(["text"])] for request in requests] == [
        ["a", "b=1"], ["x y", "", "z\u2028z"], ["é", "f"],
    ]  # fmt: skip
    assert [request.batch_size for request in requests] == [None, None, 2]
    assert [call[1:] for call in calls] == [
        ({"beam_size": 4, "beam_rules": "transformers", "length_penalty": -0.5, "early_stopping": "never"}, None),
        ({"max_new_tokens": 9, "min_new_tokens": 2, "no_repeat_ngram_size": 3, "repetition_penalty": 1.5}, None),
        ({"temperature": 0.5, "top_k": 3, "top_p": 0.9, "sample": True}, 3),
    ]


def test_score_writes_its_output_whole(here, capsys):
    gold = {"data": [{"paragraphs": [{"context": "a b", "qas": [
        {"id": "1", "question": "q", "answers": [{"text": "b", "answer_start": 2}]}]}]}]}  # fmt: skip
    (here / "gold.json").write_text(json.dumps(gold))
    (here / "pred.json").write_text(json.dumps({"1": "The b."}))
    assert main(["score", "squad", "gold.json", "pred.json", "--output", "scores.json"]) == 0
    assert json.loads((here / "scores.json").read_text())["exact_match"] == 100.0
    assert json.loads(said(capsys, ["score", "squad", "gold.json", "pred.json"], 0))["f1"] == 100.0
    assert sorted(path.name for path in here.iterdir()) == ["c.yaml", "gold.json", "pred.json", "scores.json"]


# ---- exit codes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("a.txt: wrong"), 2, "a.txt: wrong\n"),
        (DivergedError("loss is nan"), 3, "loss is nan\n"),
        (StorageError("disk full"), 4, "disk full\n"),
        (StoppedSafely("saved at 5"), 75, "saved at 5\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError(28, "No space left on device", "/x/y"), 4, "/x/y: No space left on device\n"),
        (PermissionError(13, "Permission denied", "/x/y"), 2, "/x/y: Permission denied\n"),
        (ModuleNotFoundError("No module named 'wandb'", name="wandb"), 2, "the package 'wandb' is missing; install"),
        (
            RuntimeError("Unable to initialize backend 'cuda': no\nmore"),
            2,
            "Unable to initialize backend 'cuda': no; ch",
        ),
        (ZeroDivisionError("a bug"), 70, "Traceback"),
        (BrokenPipeError(32, "Broken pipe"), 70, "Traceback"),  # standard output is fine: some other pipe broke
        (ModuleNotFoundError("No module named 'bertjax.x'", name="bertjax.x"), 70, "Traceback"),
    ],
)
def test_exit_codes(here, fake, capsys, error, code, text):
    fake("bertjax.evaluation.evaluators.build", "build_evaluators")
    fake("bertjax.training.loop", "train", error)
    err = said(capsys, ["train", "c.yaml"], code)
    assert err.startswith(text) and (code == 70) == ("Traceback" in err)


# ---- in a process of its own ----------------------------------------------------------------------------------------

HEAVY = ("jax", "numpy", "flax", "grain", "orbax", "tokenizers")


def after_main(argv: list[str], watched: tuple[str, ...]) -> tuple[int, list[str], str]:
    """Exit code, which of `watched` were imported, and stderr."""
    code = f"import sys; from bertjax.cli.main import main; c = main({argv!r}); print()"
    code += f"; print(c, *(sys.modules.keys() & {set(watched)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    result, *modules = done.stdout.splitlines()[-1].split()
    return int(result), modules, done.stderr


def test_help_and_mistakes_import_nothing(here):
    nothing = (*HEAVY, "pydantic", "yaml")
    for argv, code in ((["--help"], 0), (["train", "--help"], 0), (["tain"], 2)):
        assert after_main(argv, nothing)[:2] == (code, [])
    assert after_main(["evaluate", "./no/such"], HEAVY)[:2] == (2, [])
    assert after_main(["train", str(here / "c.yaml"), "stages.s.steps=0"], HEAVY)[:2] == (2, [])
    assert after_main(["inspect", str(here / "c.yaml"), "stages.s.steps=0"], HEAVY)[:2] == (2, [])
    code = "import sys, bertjax; dir(bertjax); print(*(sys.modules.keys() & {'jax', 'pydantic', 'yaml', 'numpy'}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "\n"


def test_training_on_a_cpu_imports_no_kernels_and_no_other_framework():
    slow = ("jax.experimental.pallas.tpu", "jax.experimental.pallas.triton", "torch", "transformers", "datasets")
    code = "import sys, bertjax.training.program, bertjax.evaluation.evaluators.build; from pathlib import Path"
    code += "; from bertjax.training.monitor.writers import open_tensorboard; open_tensorboard(Path('none'), None)"
    code += f"; print('imported', *(sys.modules.keys() & {set(slow)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "imported\n"


def test_module_entry_point_and_a_closed_pipe(here):
    python = [sys.executable, "-m", "bertjax"]
    done = subprocess.run([*python, "tain"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("bertjax: unknown command 'tain'")
    reader, writer = os.pipe()
    os.close(reader)
    for unbuffered in ("", "1"):
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run([*python, "--help"], stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, env=environment)
        assert (done.returncode, done.stderr) == (141, b"")
    os.close(writer)


def test_public_names_are_found_on_demand():
    assert bertjax.Config.__name__ == "Config" and callable(bertjax.load) and "load" in dir(bertjax)
    names: dict = {}
    exec("from bertjax import *", names)
    assert names.keys() >= set(bertjax.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'$"):
        bertjax.nothing  # noqa: B018
    with pytest.raises(AttributeError, match="it is now called 'build_model'"):
        bertjax.apply_model  # noqa: B018


def test_doctor_finds_this_machine_fit_and_says_what_to_do_otherwise(here, capsys, monkeypatch):
    assert "\nready\n" in said(capsys, ["doctor"], 0)
    wanted = [Requirement("jax>=0.10"), Requirement("numpy>=99"), Requirement("no-such-package>=1")]
    monkeypatch.setattr("bertjax.tools.doctor.requirements", lambda: wanted)
    monkeypatch.setattr("bertjax.tools.doctor._disk", lambda: (_ for _ in ()).throw(OSError("broken")))
    assert main(["doctor"]) == 2
    out = capsys.readouterr().out
    assert "pip install 'no-such-package>=1'" in out and "pip install 'numpy>=99'" in out
    assert "OSError: broken" in out and "not ready" in out


def test_an_interrupted_process_ends_without_cleaning_up(monkeypatch):
    """The devices may still compute, and jax's clean-up crashed in that."""
    monkeypatch.setattr(main_module, "main", lambda: 130)
    monkeypatch.setattr(main_module, "_end_soon", lambda code: None)
    monkeypatch.setattr(os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(f"at once: {code}")))
    before = signal.getsignal(signal.SIGTERM)
    try:
        for code in (130, 75):
            monkeypatch.setattr(main_module, "main", lambda code=code: code)
            with pytest.raises(SystemExit, match=f"at once: {code}"):
                main_module.run_process()
        monkeypatch.setattr(main_module, "main", lambda: 2)
        with pytest.raises(SystemExit, match="2"):
            main_module.run_process()
        with pytest.raises(SystemExit, match="at once: 2"):  # a signal during the interpreter's clean-up
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_closed_streams_are_opened(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main_module.main(["--version"]) == 0 and main_module.main(["nosuch"]) == 2
    for stream in (sys.stdout, sys.stderr):
        stream.close()


def test_every_generated_answer_is_one_line(here, monkeypatch, capsys):
    from bertjax.tools import predict

    answers = [{"generated": text} for text in ("two\nlines\r\x1b[2J", "a tab\tand 👩\u200d🌾", "")]
    monkeypatch.setattr(predict, "generate", lambda *_, **__: [{"text": "a", "answers": answers}])
    assert main(["predict", "generate", ".", "a"]) == 0
    assert capsys.readouterr().out == "two\\nlines\\r\\x1b[2J\na tab\tand 👩\u200d🌾\n\n"
