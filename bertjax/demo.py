"""The demo, `bertjax demo`: pre-trains, fine-tunes, evaluates and reports on the documentation inside Python.

Runs the commands a user would type, each in its own process, and prints them. Takes a few minutes on two cores.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bertjax.config.loading.shipped import shipped_configs
from bertjax.progress import reporter

Questions = list[tuple[str, str, list[str]]]  # id, context, answers


def run_demo(root: Path = Path("runs")) -> int:
    """Run the demo, with its runs in the folder `root` -> exit code."""
    began = time.monotonic()
    reporter.current.close()  # the commands show their own progress
    run, scratch = root / "demo", root / "demo-from-random-weights"
    print_title("1  Train the tokenizer, pre-train BERT (MLM + NSP), fine-tune on questions with gradual unfreezing")
    train_shipped("demo", root)
    print_title("2  The same fine-tuning from random weights, to measure the gain of pre-training")
    train_shipped("demo_random", root)
    print_title("3  Restore the checkpoints in new processes and score them on modules not seen in training")
    scores = evaluate_run(run), evaluate_run(scratch)
    with reporter.task("scoring guesses without a model"):
        baselines = write_baselines(run, scores[1])
    print_title("4  Fill masks, answer questions")
    show_masks(run)
    show_answers(run)
    print_title("5  A T5: copies of text, then questions and span corruption mixed, answers generated token by token")
    generated = text_to_text(root / "demo-t5")
    print_title("6  The reports")
    run_bertjax("report", str(run))
    run_bertjax("report", str(root / "demo-t5"))
    print_table(scores[0], [*baselines, generated])
    print(f"\nThe demo took {time.monotonic() - began:.0f} s.")
    return 0


def print_title(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def train_shipped(name: str, root: Path) -> None:
    """Train a shipped configuration, also where a file in the current folder has the same name."""
    folder = [] if root == Path("runs") else [f"run.root={json.dumps(str(root), ensure_ascii=False)}"]
    run_bertjax("train", name, *folder, replace={name: str(shipped_configs()[name])})


def run_bertjax(*arguments: str, capture: bool = False, replace: Mapping[str, str] = MappingProxyType({})) -> str:
    """Run one command; a failure ends the demo with the exit code of the command.

    `replace`: arguments that are passed in another form than they are shown.
    """
    print("$ bertjax " + " ".join(f"'{a}'" if re.search(r"[\s\[\]?\"]", a) else a for a in arguments), flush=True)
    command = [sys.executable, "-P", "-m", "bertjax", *(replace.get(word, word) for word in arguments)]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE if capture else None, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


def evaluate_run(run: Path) -> dict[str, float]:
    out = run_bertjax("evaluate", str(run), "--stage", "qa", capture=True)
    scores = json.loads(out)["scores"]["unseen_modules"]
    print(f"exact match {scores['exact']:.1f}  F1 {scores['f1']:.1f}  over {scores['total']:.0f} questions")
    return scores


def text_to_text(run: Path) -> dict[str, Any]:
    """Train and score the T5 and show generated text -> its row of the table."""
    train_shipped("demo_t5", run.parent)
    kept = json.loads((run / "evaluations" / "03-multitask" / "unseen_modules.json").read_text())
    show_samples(kept["samples"][:3])
    sample = kept["samples"][3]
    prompts = (f"question: {sample['question']} context: {sample['context']}", SPAN)
    for row in json.loads(run_bertjax("predict", "generate", str(run), *prompts, "--json", capture=True)):
        print(f"      -> {row['generated']}")
    scores = kept["scores"]
    print(f"exact match {scores['exact']:.1f}  F1 {scores['f1']:.1f}  over {scores['total']:.0f} questions")
    return {"name": "a T5 that writes its answers", "exact": scores["exact"], "f1": scores["f1"]}


# ---- baselines ------------------------------------------------------------------------------------------------------


def load_questions(split: str) -> Questions:
    from bertjax.data.sources.stdlib import docs

    return [
        (qa["id"], paragraph["context"], [answer["text"] for answer in qa["answers"]])
        for article in docs.squad(split)["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


def majority_span(train: Questions, heldout: Questions) -> dict[str, str]:
    """The most common training answer that the context contains."""
    common = [text for text, _ in Counter(answers[0] for _, _, answers in train).most_common()]
    return {key: next((text for text in common if text in context), "") for key, context, _ in heldout}


def random_span(train: Questions, heldout: Questions) -> dict[str, str]:
    """A random span of words, as long as a random training answer."""
    rng = random.Random(0)
    lengths = [len(answers[0].split()) for _, _, answers in train]
    predictions = {}
    for key, context, _ in heldout:
        words = context.split()
        length = min(rng.choice(lengths), len(words))
        start = rng.randrange(len(words) - length + 1)
        predictions[key] = " ".join(words[start : start + length])
    return predictions


def write_baselines(run: Path, scratch: dict[str, float]) -> list[dict[str, Any]]:
    """Score the baselines and write baselines.json for the report."""
    from bertjax.data.sources.stdlib import docs
    from bertjax.evaluation.metrics.squad import score
    from bertjax.storage.atomic import write_json_atomic

    train, heldout, gold = load_questions("train"), load_questions("heldout"), docs.squad("heldout")
    found = [{"name": "same fine-tuning from random weights", "exact": scratch["exact"], "f1": scratch["f1"]}]
    for name, guess in (("majority span", majority_span), ("random span", random_span)):
        scores = score(gold, guess(train, heldout))
        found.append({"name": name, "exact": scores["exact"], "f1": scores["f1"]})
    write_json_atomic(run / "baselines.json", found)
    return found


def print_table(scores: dict[str, float], baselines: Sequence[dict[str, Any]]) -> None:
    print("\nQuestions about modules not seen in training      exact match      F1")
    for row in [{"name": "pre-trained, then gradual unfreezing"} | scores, *baselines]:
        print(f"  {row['name']:<46}{row['exact']:>13.1f}{row['f1']:>8.1f}")


# ---- predictions ----------------------------------------------------------------------------------------------------

SENTENCES = (
    "Return the number of [MASK] in the list.",
    "If the file does not [MASK], an exception is raised.",
    "Raise ValueError [MASK] the argument is negative.",
)
SPAN = "Return True if the <extra_id_0> is empty."


def show_masks(run: Path) -> None:
    checkpoint = run / "checkpoints" / "00-pretrain"
    found = json.loads(run_bertjax("predict", "fill-mask", str(checkpoint), *SENTENCES, capture=True))
    for row in found:
        guesses = ", ".join(f"{g['token']} {100 * g['probability']:.0f}%" for g in row["masks"][0][:4])
        print(f"  {row['text']}\n      -> {guesses}")


def show_answers(run: Path) -> None:
    """Four answers of the evaluation, and one of `predict answer`, to held-out questions."""
    kept = json.loads((run / "evaluations" / "01-qa" / "unseen_modules.json").read_text())["samples"]
    show_samples(kept[:4])
    sample = kept[4]
    asked = ("--question", sample["question"], "--context", sample["context"])
    for guess in json.loads(run_bertjax("predict", "answer", str(run), *asked, capture=True))["candidates"]:
        print(f"      -> {guess['text']}  {100 * guess['probability']:.0f}%")


def show_samples(samples: Sequence[dict[str, Any]]) -> None:
    for sample in samples:
        mark = "right" if sample["prediction"] in sample["answers"] else f"should be: {sample['answers'][0]}"
        print(f"  {sample['question']}\n      -> {sample['prediction']}  ({mark})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bertjax.demo", description=__doc__, allow_abbrev=False)
    parser.add_argument("--root", metavar="DIR", default="runs", help="folder of the runs (default: runs)")
    sys.exit(run_demo(Path(parser.parse_args().root).expanduser()))
