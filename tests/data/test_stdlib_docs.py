"""The built-in corpus: real sentences, question and answer pairs that need the context, the same on every run."""

import collections
import hashlib
import os
import re
import subprocess
import sys

import pytest

from bertjax.data.sources.stdlib import docs, parse
from bertjax.data.sources.stdlib.qa import CONTEXT_WORDS, GROUPINGS, build_squad, facts_of


@pytest.fixture(scope="module")
def documents() -> dict[str, list[str]]:
    return dict(docs.documents("all"))


@pytest.fixture(scope="module")
def squads() -> dict[str, dict]:
    return {split: docs.squad(split) for split in ("train", "heldout")}


def _asked(squad: dict) -> list[tuple[str, str, dict]]:
    """(context, title, question) of every question."""
    return [(p["context"], a["title"], qa) for a in squad["data"] for p in a["paragraphs"] for qa in p["qas"]]


def test_there_is_enough_text(documents: dict[str, list[str]]) -> None:
    assert sum(len(sentence) for sentences in documents.values() for sentence in sentences) > 1_100_000
    assert len(documents) > 300
    for name in ("shutil", "email.message", "topics.assert"):
        assert len(documents[name]) >= 3


def test_splits_partition_the_modules(documents: dict[str, list[str]]) -> None:
    train, heldout = (dict(docs.documents(split)) for split in ("train", "heldout"))
    assert train.keys().isdisjoint(heldout) and train | heldout == documents
    assert 0.10 < len(heldout) / len(documents) < 0.25


def test_text_is_english_and_not_code(documents: dict[str, list[str]]) -> None:
    sentences = [sentence for found in documents.values() for sentence in found]
    assert not [s for s in sentences if ">>>" in s or "\n" in s or "::=" in s]
    words = collections.Counter(word for s in sentences for word in re.findall(r"[a-z]+", s.lower()))
    common = sum(words[word] for word in "the of a is to in and by for that".split())
    assert common > 0.2 * sum(words.values())  # running English has about a quarter
    assert sum(s[-1] in ".!?" for s in sentences) > 0.99 * len(sentences)


@pytest.mark.parametrize(
    ("description", "kind", "expected"),
    [
        ("Return the length of s.", "function", "returns the length of s"),
        ("Copy and close the file.", "function", "copies and closes the file"),
        ("Recursively copy a tree.", "function", "recursively copies a tree"),
        ("Open the file and return its size.", "method", "opens the file and returns its size"),
        ("Try to open and return the file.", "method", "tries to open and return the file"),
        ("Returns the name.", "method", "returns the name"),
        ("True if it is open.", "property", "returns True if it is open"),
        ("Banana of the day.", "function", ""),
        ("A reader of files.", "class", "is a reader of files"),
        ("Abstract base class for readers.", "class", "is an abstract base class for readers"),
        ("Exception raised when it fails.", "class", "is an exception raised when it fails"),
    ],
)
def test_descriptions_become_predicates(description: str, kind: str, expected: str) -> None:
    assert parse.predicate(description, kind) == expected


def test_prose_drops_what_is_not_prose() -> None:
    docstring = """f(x) -> int

    Add one to the ``number`` given.  It keeps
    the sign.

    >>> f(1)
    2

    x = y[0]
    - the first item of the list
    """
    assert parse.extract_prose(docstring) == ["Add one to the number given.", "It keeps the sign."]


def test_answers_are_where_they_are_said_to_be(squads: dict[str, dict]) -> None:
    for squad in squads.values():
        for context, _, qa in _asked(squad):
            (answer,) = qa["answers"]
            start = answer["answer_start"]
            assert context[start : start + len(answer["text"])] == answer["text"]
            assert answer["text"] == answer["text"].strip() and 1 <= len(answer["text"].split()) <= 9
            assert qa["question"].endswith("?") and "  " not in qa["question"] and " ?" not in qa["question"]


def test_counts_kinds_and_lengths(squads: dict[str, dict]) -> None:
    train, heldout = _asked(squads["train"]), _asked(squads["heldout"])
    assert len(train) >= 5000 and len(heldout) >= 800  # the library differs between Python versions
    kinds = collections.Counter(" ".join(qa["question"].split()[:2]) for _, _, qa in train)
    assert {"What does", "What is", "Which class", "Which exception"} <= kinds.keys()
    assert min(kinds[kind] for kind in ("What does", "What is", "Which class", "Which exception")) > 0.02 * len(train)
    assert max(len(context.split()) for context, _, _ in train) <= CONTEXT_WORDS[1]
    ids = [qa["id"] for _, _, qa in train + heldout]
    assert len(set(ids)) == len(ids)


def test_heldout_is_unseen(squads: dict[str, dict]) -> None:
    train, heldout = _asked(squads["train"]), _asked(squads["heldout"])
    assert {title for _, title, _ in train}.isdisjoint(title for _, title, _ in heldout)
    assert {qa["question"] for _, _, qa in train}.isdisjoint(qa["question"] for _, _, qa in heldout)
    asked = collections.Counter(qa["question"] for _, _, qa in train)
    assert max(asked.values()) <= GROUPINGS


def test_a_question_needs_its_context(squads: dict[str, dict]) -> None:
    """No answer by habit: neither the commonest answer of a kind of question, nor a fixed place."""
    train, heldout = _asked(squads["train"]), _asked(squads["heldout"])
    by_kind = collections.defaultdict(collections.Counter)
    for _, _, qa in train:
        by_kind[qa["question"].split()[1]][qa["answers"][0]["text"]] += 1
    habit = sum(
        by_kind[qa["question"].split()[1]].most_common(1)[0][0] == qa["answers"][0]["text"] for _, _, qa in heldout
    )
    assert habit < 0.08 * len(heldout)
    longest = sum(max(context.split(), key=len) == qa["answers"][0]["text"] for context, _, qa in heldout)
    opening = sum(context.split()[2] == qa["answers"][0]["text"] for context, _, qa in heldout)
    assert max(longest, opening) < 0.3 * len(heldout)  # a context opens with a name, and many ask for names
    # the same context gives different answers to different questions
    answers = collections.defaultdict(set)
    asked = collections.Counter(context for context, _, _ in heldout)
    for context, _, qa in heldout:
        answers[context].add(qa["answers"][0]["answer_start"])
    several = [context for context in asked if asked[context] > 2]
    assert len(several) > 20 and sum(len(answers[context]) == asked[context] for context in several) > 0.6 * len(
        several
    )


def test_one_fact_of_a_sort_in_a_context(squads: dict[str, dict]) -> None:
    """So a question has one answer there, whatever the names."""
    cues = {"Which exception": r" can raise (\S+)\.", "derived from?": r" is a subclass of (\S+)\."}
    for context, _, qa in _asked(squads["train"]):
        for asked, cue in cues.items():
            if asked in qa["question"]:
                assert re.findall(cue, context) == [qa["answers"][0]["text"]]


def test_facts_agree_with_the_library() -> None:
    """Checked against the imported modules themselves, by `inspect`."""
    import inspect
    import shutil

    entries = {e.name: e for e in parse.module_entries(parse.parse(_file("shutil")))}
    entry = entries["copytree"]
    assert entry.lead.startswith("recursively copies a directory tree")
    parameters = inspect.signature(shutil.copytree).parameters
    assert all(repr(parameters[argument].default) == value for argument, value in entry.defaults) and entry.defaults
    assert entries["SameFileError"].base == shutil.SameFileError.__base__.__name__


def _file(module: str):
    return dict(parse.source_files(parse.stdlib_root()))[module]


@pytest.mark.slow
def test_same_in_another_process(squads: dict[str, dict]) -> None:
    code = "import hashlib, json; from bertjax.data.sources.stdlib import docs as d; " + (
        "print(hashlib.sha256(json.dumps([d.squad('heldout'), list(d.documents('all'))]).encode()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_no_module_is_imported_by_reading() -> None:
    code = "from bertjax.data.sources.stdlib import docs; list(docs.documents('heldout')); import sys; "
    code += "print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"tkinter", "turtle", "antigravity", "imaplib", "wsgiref", "pydoc_data.topics"}.isdisjoint(loaded)


def test_split_is_by_a_hash_of_the_name() -> None:
    digest = hashlib.sha256(b"shutil").digest()
    assert docs.is_heldout("shutil") == (int.from_bytes(digest[:4], "big") % 100 < 15)


def test_questions_of_one_context() -> None:
    """A whole small module, checked by eye."""
    import ast

    source = '''
class Cup:
    """A container for tea and other hot drinks."""
    def fill(self, level=3):
        """Fill the cup with tea up to the level."""
        if level > 9: raise ValueError
    def drain(self):
        """Return the tea that is left in the cup."""
def wash(cup, soap=True):
    """Remove every stain from the cup, then dry it."""
def measure(cup):
    """Return the number of grams, or None if the cup is broken."""
def shelve(cup, place="rack"):
    """Store the clean cup in the place named. It returns the old cup."""
'''
    entries = parse.module_entries(ast.parse(source))
    facts = {f.question: f.answer for e in entries for f in facts_of(e)}
    assert facts == {
        "What is the class Cup?": "a container for tea and other hot drinks",
        "What does the method fill do?": "fills the cup with tea up to the level",
        "Which class has the method fill?": "Cup",
        "What is the default value of the argument level of fill?": "3",
        "Which exception can the method fill raise?": "ValueError",
        "What does the method drain return?": "the tea that is left in the cup",
        "Which class has the method drain?": "Cup",
        "What does the function wash do?": "removes every stain from the cup",
        "What is the default value of the argument soap of wash?": "True",
        "What does the function measure return?": "the number of grams",
        "What does the function shelve do?": "stores the clean cup in the place named",
        "What is the default value of the argument place of shelve?": "'rack'",
    }
    asked = {qa["question"]: qa["answers"][0]["text"] for _, _, qa in _asked(build_squad([("cups", entries)]))}
    assert asked and asked.items() <= facts.items()
