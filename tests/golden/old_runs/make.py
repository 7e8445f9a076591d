"""Makes the archives here, and expected.json with what is in them. Run with the code of commit be330a7 alone:

    git worktree add ../before be330a7 && PYTHONPATH=../before python tests/golden/old_runs/make.py

Later code has to restore these run folders as they are, so later code never makes them again.
"""

import contextlib
import hashlib
import io
import json
import os
import platform
import random
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.pop("XLA_FLAGS", None)  # one device

import numpy as np  # noqa: E402

HERE = Path(__file__).resolve().parent
STOP = {"bert": ("qa", 75)}  # the stage that is left unfinished, and the step it is stopped at

BERT = """\
model: {vocab_size: 112, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32,
  max_position_embeddings: 48, initializer_range: 0.15}
run: {name: bert, root: kept, seed: 7, log_every: 10, compute_dtype: float32, tensorboard: false, compile_cache: null,
  prepare_workers: 1, checkpoint: {save_every: 40, keep_last: 1}}
tasks:
  text: {source: {kind: text, files: [text.txt], layout: sentences}, preprocess: {sequence_length: 32, pack: true}}
  questions: {source: {kind: squad, files: [train.json]}, preprocess: &windows {kind: span_qa, sequence_length: 48,
    doc_stride: 16, max_query_length: 12}}
stages:
  - {name: pretrain, data: text, steps: 60, batch_size: 8, optimizer: {kind: adamw, learning_rate: 1e-2},
    evaluate: [{kind: mlm, every: 40, data: {source: {kind: text, files: [more.txt], layout: sentences},
      preprocess: {sequence_length: 32}}}]}
  - {name: qa, data: questions, objective: {kind: span_qa}, steps: 90, batch_size: 8, trainable: gradual,
    optimizer: {learning_rate: 4e-3},
    evaluate: [{kind: squad, null_score_diff_threshold: 4.0, data: {source: {kind: squad, files: [heldout.json]},
      preprocess: *windows}}]}
"""
NEXT = """\
extends: bert.yaml
run: {name: next}
tokenizer: {path: kept/bert/tokenizer}
stages:
  - {name: again, data: questions, objective: {kind: span_qa}, steps: 4, batch_size: 8, init_from: kept/bert,
    optimizer: {learning_rate: 1e-3}}
"""
T5 = """\
model: {family: t5, vocab_size: 128, d_model: 16, d_kv: 8, d_ff: 32, num_layers: 2, num_heads: 2,
  feed_forward_proj: gated-gelu, tie_word_embeddings: false}
tokenizer: {kind: sentencepiece, path: tokenizer.json}
run: {name: t5, root: kept, seed: 7, log_every: 10, compute_dtype: float32, tensorboard: false, compile_cache: null,
  prepare_workers: 1, checkpoint: {save_every: 40, keep_last: 2}}
tasks:
  spans: {source: {kind: text, files: [text.txt], layout: sentences}, preprocess: &spans {kind: span_corruption,
    sequence_length: 32, target_length: 16}}
  questions: {source: {kind: squad, files: [train.json]}, preprocess: &answers {kind: text_to_text, prompt: squad,
    sequence_length: 48, target_length: 8, pack: true}}
  answers: {source: {kind: squad, files: [train.json]}, preprocess: {kind: text_to_text, prompt: squad,
    sequence_length: 32, target_length: 16}}
stages:
  - {name: pretrain, data: {mixture: [spans, answers], temperature: 2.0}, objective: {kind: text_to_text}, steps: 40,
    batch_size: 8,
    optimizer: {kind: adafactor, learning_rate: 3e-2, schedule: constant, min_dim_size_to_factor: 16},
    evaluate: [{kind: loss, data: {source: {kind: text, files: [more.txt], layout: sentences}, preprocess: *spans}}]}
  - {name: qa, data: questions, objective: {kind: text_to_text}, steps: 80, batch_size: 8,
    trainable: {kind: adapters, adapter_size: 4},
    optimizer: {kind: adafactor, learning_rate: 3e-2, schedule: constant, min_dim_size_to_factor: 16},
    evaluate: [{kind: text_to_text, data: {source: {kind: squad, files: [heldout.json]},
      preprocess: {kind: text_to_text, prompt: squad, sequence_length: 48, target_length: 8}}}]}
"""
CONFIGS = {"bert": BERT, "t5": T5}
EVALUATIONS = {"bert": ("mlm", "squad"), "t5": ("loss", "text_to_text")}
STAGES = ("pretrain", "qa")
ANIMALS = "dog cat fox hen cow owl bee ant eel elk".split()
PLACES = "barn river forest garden field cave tree house pond hill".split()
VERBS = "sleeps sings runs eats hides waits plays walks swims digs".split()
CONTEXT = "The owl sleeps in the barn. The bee sleeps in the tree. The fox sleeps in the cave."
PREDICTIONS: dict[str, dict[str, list[str]]] = {
    "bert": {
        "fill-mask": ["predict", "fill-mask", "kept/bert/checkpoints/00-pretrain", "The dog [MASK] near the [MASK]."],
        "answer": ["predict", "answer", "kept/bert", "--question", "Where is the bee?", "--context", CONTEXT],
    },
    "t5": {
        "generate": ["predict", "generate", "kept/t5", "--file", "questions.txt", "--json"],
        "generate-sample": ["predict", "generate", "kept/t5", "--file", "questions.txt", "--sample", "--seed", "3",
                            "--json"],
        "generate-beam": ["predict", "generate", "kept/t5", "--file", "questions.txt",
                          "--beam", "3", "--max-new-tokens", "8", "--json"],
    },
}  # fmt: skip


# ---- sources --------------------------------------------------------------------------------------------------------


def text(seed: int, documents: int) -> str:
    rng = random.Random(seed)
    say = lambda: f"The {rng.choice(ANIMALS)} {rng.choice(VERBS)} near the {rng.choice(PLACES)}."  # noqa: E731
    return "\n\n".join("\n".join(say() for _ in range(8)) for _ in range(documents)) + "\n"


def squad(seed: int, articles: int) -> str:
    """Questions of three animals an article, and in every other article of one that its text does not name."""
    rng = random.Random(seed)
    data = []
    for number in range(articles):
        (*animals, other), places = rng.sample(ANIMALS, 4), rng.sample(PLACES, 3)
        context = " ".join(f"The {a} sleeps in the {p}." for a, p in zip(animals, places, strict=True))
        qas = [
            {"id": f"{seed}-{number}-{a}", "question": f"Where is the {a}?", "is_impossible": False,
             "answers": [{"text": p, "answer_start": context.index(f"the {p}.") + 4}]}
            for a, p in zip(animals, places, strict=True)
        ]  # fmt: skip
        if number % 2:
            none = {"id": f"{seed}-{number}-{other}", "question": f"Where is the {other}?"}
            qas.append(none | {"is_impossible": True, "answers": []})
        data.append({"title": f"t{number}", "paragraphs": [{"context": context, "qas": qas}]})
    return json.dumps({"version": "v2.0", "data": data}, indent=0) + "\n"


def questions(squad_file: str) -> str:
    """The questions of a SQuAD file as T5 reads them, one a line."""
    paragraphs = [part for article in json.loads(squad_file)["data"] for part in article["paragraphs"]]
    return "".join(f"question: {q['question']} context: {p['context']}\n" for p in paragraphs for q in p["qas"])


def unigram() -> str:
    """The tokenizer.json of a unigram model with the words of these texts, all letters and ten sentinels."""
    from bertjax.data import spm_model, unigram_json

    words = [f"▁{word}" for word in ("The the in is near Where question: context:".split() + ANIMALS + PLACES + VERBS)]
    letters = ["▁", *map(chr, range(ord("a"), ord("z") + 1)), *"TWQ.?:"]
    normal = [*((word, -4.0) for word in words), *((letter, -9.0) for letter in letters)]
    special = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}
    pieces = [
        spm_model.Piece("<pad>", 0.0, spm_model.CONTROL), spm_model.Piece("</s>", 0.0, spm_model.CONTROL),
        spm_model.Piece("<unk>", 0.0, spm_model.UNKNOWN),
        *(spm_model.Piece(piece, score, spm_model.NORMAL) for piece, score in normal),
    ]  # fmt: skip
    return unigram_json.write(spm_model.Model(tuple(pieces), b"", special), 10)


def project(home: Path, name: str) -> None:
    home.mkdir(parents=True)
    files = {
        f"{name}.yaml": CONFIGS[name], "text.txt": text(0, 12), "more.txt": text(1, 4), "train.json": squad(2, 16),
        "heldout.json": squad(3, 5),
    }  # fmt: skip
    if name == "bert":
        files |= {"next.yaml": NEXT}
    else:
        files |= {"tokenizer.json": unigram(), "questions.txt": questions(squad(3, 5))}
    for file, content in files.items():
        (home / file).write_text(content, encoding="utf-8")


# ---- running --------------------------------------------------------------------------------------------------------


def run(argv: list[str], code: int = 0) -> str:
    from bertjax.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        got = main(argv)
    assert got == code, (argv, got, out.getvalue())
    return out.getvalue()


def train(config: str, stop: tuple[str, int] | None = None) -> None:
    from bertjax.training.stage_run import StageRun

    kept = StageRun.should_stop
    if stop:
        StageRun.should_stop = lambda self, step: (self.name, step) == stop  # type: ignore[method-assign]
    try:
        run(["train", config], 75 if stop else 0)
    finally:
        StageRun.should_stop = kept  # type: ignore[method-assign]


def sha256(array: np.ndarray) -> str:
    x = np.ascontiguousarray(array)
    return hashlib.sha256(f"{x.dtype} {list(x.shape)} ".encode() + x.tobytes()).hexdigest()


def parameters(path: str) -> dict[str, str]:
    """sha256 of all parameters of a checkpoint, those of its base included."""
    from bertjax.evaluation.restore import restore

    return {name: sha256(np.asarray(x)) for name, x in sorted(restore(path).params.items())}


def exported(path: str) -> dict[str, np.ndarray] | None:
    """The tensors of the Hugging Face folder that a checkpoint becomes; None of adapters, which have no such form."""
    from safetensors.numpy import load_file

    from bertjax.cli import main

    with tempfile.TemporaryDirectory() as folder:
        if main(["export", path, f"{folder}/hf"]):
            return None
        return dict(sorted(load_file(f"{folder}/hf/model.safetensors").items()))


def rows(store: Path) -> dict:
    """Number of rows and sha256 of all of them, in order."""
    from array_record.python.array_record_module import ArrayRecordReader

    digest, count = hashlib.sha256(), 0
    for shard in json.loads((store / "manifest.json").read_text())["shards"]:
        reader = ArrayRecordReader(str(store / shard["file"]))
        for row in reader.read_all():
            digest.update(row)
            count += 1
        reader.close()
    return {"rows": count, "sha256": digest.hexdigest()}


def metrics(path: Path) -> list[dict]:
    """The numbers of training and evaluations that do not depend on the time it took."""
    found = []
    for line in map(json.loads, path.read_text().splitlines()):
        if line["kind"] in ("train", "eval"):
            timed = ("tokens_per_second", "step_seconds", "data_wait", "mfu", "memory_bytes", "elapsed")
            found.append({key: value for key, value in line.items() if key not in timed})
    return found


# ---- what is expected -----------------------------------------------------------------------------------------------


def evaluated(name: str, stage: str, step: int, evaluation: str) -> dict:
    asked = ["--stage", stage, "--step", str(step), "--name", evaluation]
    run(["evaluate", f"kept/{name}", *asked, "--output", "scores.json"])
    return json.loads(Path("scores.json").read_text())["scores"]


def expected(name: str) -> dict:
    """What the run in the current folder, a copy of the one kept, comes to."""
    found: dict = {"checkpoints": {}, "predict": {}, "metrics": metrics(Path(f"kept/{name}/metrics.jsonl"))}
    prepared = sorted(path.parent for path in Path("kept/prepared").glob("*/manifest.json"))
    found["stores"] = {store.name: rows(store) for store in prepared}
    for what, argv in PREDICTIONS[name].items():
        found["predict"][what] = {"argv": argv, "stdout": run(argv)}
    for index, stage in enumerate(STAGES):
        folder = Path(f"kept/{name}/checkpoints/{index:02d}-{stage}")
        for step in sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()):
            tensors = exported(f"{folder}/{step}")
            found["checkpoints"][f"{folder}/{step}"] = {
                "stage": stage, "step": step, "evaluation": EVALUATIONS[name][index],
                "scores": evaluated(name, stage, step, EVALUATIONS[name][index]),
                "parameters": parameters(f"{folder}/{step}"),
                "exported": tensors and {key: sha256(x) for key, x in tensors.items()},
            }  # fmt: skip
    if name == "bert":
        train("next.yaml")
        found["next"] = metrics(Path("kept/next/metrics.jsonl"))
        shutil.rmtree(f"kept/{name}")
        train("bert.yaml")  # without a stop
        tensors = exported(f"kept/{name}") or {}
        found["finished"] = {
            "metrics": metrics(Path(f"kept/{name}/metrics.jsonl")),
            "exported": {key: [float(x.sum()), float(np.linalg.norm(x))] for key, x in tensors.items()},
        }
    return found


def make(name: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / name
        project(home, name)
        os.chdir(home)
        train(f"{name}.yaml", STOP.get(name))
        for path in home.rglob("commit_success.txt"):  # Orbax writes an absolute path into it
            path.write_text(path.read_text().replace(f"{home.resolve()}/", ""))
        pack(home, HERE / f"{name}.tar.xz")
        try:
            return expected(name)
        finally:
            os.chdir(HERE)


def pack(home: Path, archive: Path) -> None:
    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        entry.mode = 0o755 if entry.isdir() else 0o644
        return entry

    with tarfile.open(archive, "w:xz", preset=9) as out:
        out.add(home, home.name, filter=plain)


if __name__ == "__main__":
    platform.platform = lambda *_: "Linux"  # type: ignore[assignment] # what made them is of no interest
    file = HERE / "expected.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    kept |= {name: make(name) for name in sys.argv[1:] or CONFIGS}
    file.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
