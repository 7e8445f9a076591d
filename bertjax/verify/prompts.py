"""The strings of T5's supervised tasks: those that the reference's own docstrings and tests state."""

from typing import Any

from bertjax.config.schema.data import TextToText
from bertjax.data.preprocess.prompts.registry import get_prompt
from bertjax.data.preprocess.prompts.t5_prompts import Record, TextExample, pad_punctuation
from bertjax.verify.runner import Comparisons

_WNLI = (
    "Edward dropped adhesive tape onto his window sill, and when he pulled the tape off, some of the glue was stuck on"
)
_JOEY = "Once upon a time, there was a squirrel named Joey."
_JIMMY = "Joey loved to go outside and play with his cousin Jimmy."
_ASKED = "Why was Joey surprised the morning he woke up for breakfast?"
_WALLET = "Al stole Bob's wallet and car, and then he was driving"
Case = tuple[str, dict[str, Any], list[tuple[str, str]]]

# t5/data/preprocessors_test.py: (prompt, record, [(inputs, targets)])
FROM_REFERENCE_TESTS: tuple[Case, ...] = (
    ("glue_stsb", {"sentence1": "Big news.", "sentence2": "No idea.", "label": 2.8},
     [("stsb sentence1: Big news. sentence2: No idea.", "2.8")]),
    ("glue_stsb", {"sentence1": "Big news.", "sentence2": "No idea.", "label": 1.66},
     [("stsb sentence1: Big news. sentence2: No idea.", "1.6")]),
    ("super_glue_multirc",
     {"paragraph": f"<b>Sent 1: </b>{_JOEY}<br><b>Sent 2: </b>{_JIMMY}", "question": _ASKED, "label": 1,
      "answer": "There was only pie to eat", "idx": {"paragraph": 5, "question": 1, "answer": 3}},
     [(f"multirc question: {_ASKED} answer: There was only pie to eat paragraph: Sent 1: {_JOEY} Sent 2: {_JIMMY}",
       "True")]),
    ("super_glue_record",
     {"query": "It was @placeholder.", "entities": ["A", "B", "C"], "answers": ["A", "C"],
      "passage": "This is the passage\n@highlight\nAnother sentence.\n@highlight\nThird sentence.",
      "idx": {"passage": 1, "query": 2}},
     [("record query: It was @placeholder. entities: A, B, C passage: This is the passage. Another sentence. Third "
       "sentence.", answer) for answer in ("A", "C")]),
    ("super_glue_record",
     {"query": "It was @placeholder.", "entities": ["A", "B", "C"], "answers": [], "passage": "This is the passage.",
      "idx": {"passage": 1, "query": 2}},
     [("record query: It was @placeholder. entities: A, B, C passage: This is the passage.", "<unk>")]),
    ("super_glue_wsc",
     {"text": "Mitchell asked Tom if he could lend some money.", "span1_text": "Tom", "span2_text": "he",
      "span2_index": 4, "idx": 1},
     [("wsc: Mitchell asked Tom if *he* could lend some money.", "Tom")]),
    ("glue_wnli", {"sentence1": "Lily spoke to Donna breaking her silence.", "label": 1,
                   "sentence2": "Lily spoke to Donna breaking Donna's silence."},
     [("wsc: Lily spoke to Donna breaking *her* silence.", "Donna")]),
    ("glue_wnli", {"sentence1": "The fish ate the worm. It was tasty.", "sentence2": "The worm was tasty.", "label": 0},
     [("wsc: The fish ate the worm. *It* was tasty.", "The worm")]),
    ("glue_wnli", {"sentence1": f"{_WNLI} it.", "sentence2": "Some of the glue was stuck on the window sill.",
                   "label": 0},
     [(f"wsc: {_WNLI} *it* .", "the window sill")]),
    ("glue_wnli", {"sentence1": f"{_WALLET} it really fast to get away.", "label": 1,
                   "sentence2": "He was driving the car really fast to get away."},
     [(f"wsc: {_WALLET} *it* really fast to get away.", "the car")]),
    ("definite_pronoun_resolution",
     {"sentence": "Mitchell asked Tom if he could lend some money.", "pronoun": "he", "label": 1,
      "candidates": ["Mitchell", "Tom"]},
     [("wsc: Mitchell asked Tom if *he* could lend some money.", "Tom")]),
    ("definite_pronoun_resolution",
     {"sentence": "Bill beat Tom at Scrabble because that newbie had all the luck.", "pronoun": "that newbie",
      "candidates": ["Bill", "Tom"], "label": 0},
     [("wsc: Bill beat Tom at Scrabble because *that newbie* had all the luck.", "Bill")]),
    ("definite_pronoun_resolution",
     {"sentence": "Carl borrowed a book from Richard, but the book was unreadable to him.", "pronoun": "him",
      "candidates": ["Carl", "Richard"], "label": 0},
     [("wsc: Carl borrowed a book from Richard, but the book was unreadable to *him*.", "Carl")]),
    ("squad", {"id": "testid", "context": "Some context.", "question": "A question?",
               "answers": {"text": ["The answer.", "Another answer."]}},
     [("question: A question ? context: Some context . ", "The answer . ")]),
    ("summarize", {"article": "An article.", "highlights": "A summary."}, [("summarize: An article.", "A summary.")]),
    ("translate", {"en": "That is good.", "de": "Das ist gut."},
     [("translate English to German: That is good.", "Das ist gut.")]),
    # google-research/t5_closed_book_qa, preprocessors_test.py
    ("trivia_qa_closed_book",
     {"question": "What are the names of the Olsen Twins?",
      "answer": {"value": "Mary-Kate and Ashley", "aliases": ["Mary-Kate and Ashley", "Ashley and Mary-Kate"]}},
     [("trivia_qa question: What are the names of the Olsen Twins?", "Mary-Kate and Ashley")]),
)  # fmt: skip

_YES = {"label": 1}
# By the rule of `glue` and the names of the fields and classes in tensorflow_datasets text/glue.py and super_glue.py.
BY_RULE: tuple[Case, ...] = (
    ("glue_qqp", {"question1": "Why do I easily get bored of my friends?", "label": 1, "idx": 10,
                  "question2": "Why do I get bored of friends so quickly?"},
     [("qqp question1: Why do I easily get bored of my friends? question2: Why do I get bored of friends so quickly?",
       "duplicate")]),
    ("glue_cola", {"sentence": "S"} | _YES, [("cola sentence: S", "acceptable")]),
    ("glue_sst2", {"sentence": "S"} | _YES, [("sst2 sentence: S", "positive")]),
    ("glue_mrpc", {"sentence1": "A", "sentence2": "B"} | _YES, [("mrpc sentence1: A sentence2: B", "equivalent")]),
    ("glue_mnli", {"premise": "P", "hypothesis": "H"} | _YES, [("mnli hypothesis: H premise: P", "neutral")]),
    ("glue_ax", {"premise": "P", "hypothesis": "H", "label": -1}, [("mnli hypothesis: H premise: P", "<unk>")]),
    ("glue_qnli", {"question": "Q", "sentence": "S"} | _YES, [("qnli question: Q sentence: S", "not_entailment")]),
    ("glue_rte", {"sentence1": "A", "sentence2": "B"} | _YES, [("rte sentence1: A sentence2: B", "not_entailment")]),
    ("super_glue_boolq", {"question": "Q", "passage": "P"} | _YES, [("boolq passage: P question: Q", "True")]),
    ("super_glue_cb", {"premise": "P", "hypothesis": "H"} | _YES, [("cb hypothesis: H premise: P", "contradiction")]),
    ("super_glue_copa", {"premise": "P", "choice1": "A", "choice2": "B", "question": "effect"} | _YES,
     [("copa choice1: A choice2: B premise: P question: effect", "choice2")]),
    ("super_glue_rte", {"premise": "P", "hypothesis": "H"} | _YES,
     [("rte hypothesis: H premise: P", "not_entailment")]),
    ("super_glue_wic", {"word": "W", "sentence1": "A", "sentence2": "B", "start1": 0} | _YES,
     [("wic sentence1: A sentence2: B word: W", "True")]),
    ("super_glue_axb", {"sentence1": "A", "sentence2": "B", "label": -1}, [("rte hypothesis: B premise: A", "<unk>")]),
    ("super_glue_axg", {"premise": "P", "hypothesis": "H", "label": 0},
     [("rte hypothesis: H premise: P", "entailment")]),
    ("squad_closed_book", {"question": "Is U.S. one?", "answers": ["U.S."]},
     [("squad trivia question: Is U . S . one ? ", "U . S . ")]),
)  # fmt: skip

# round(5y) / 5, half to even: 26 values
RATINGS = {0.0: "0.0", 0.3: "0.4", 0.5: "0.4", 1.1: "1.2", 1.66: "1.6", 2.5: "2.4", 2.8: "2.8", 3.9: "4.0", 5.0: "5.0"}


def make_examples(prompt: str, record: Record) -> list[TextExample]:
    languages = ["English", "German"] if prompt == "translate" else None
    return get_prompt(TextToText(prompt=prompt, languages=languages))(record)  # type: ignore[arg-type]


def prompts() -> Comparisons:
    for prompt, record, expected in FROM_REFERENCE_TESTS + BY_RULE:
        yield prompt, [[example.inputs, example.targets] for example in make_examples(prompt, record)], expected


def ratings() -> Comparisons:
    sentences = {"sentence1": "A", "sentence2": "B"}
    for rating, expected in RATINGS.items():
        yield f"a rating of {rating}", make_examples("glue_stsb", sentences | {"label": rating})[0].targets, expected
    every = {make_examples("glue_stsb", sentences | {"label": n / 1000})[0].targets for n in range(5001)}
    yield "different ratings", sorted(every), [f"{n / 5:.1f}" for n in range(26)]


def punctuation() -> Comparisons:
    for text, expected in {
        '"This  is a string with "punctuation (1845-1986) ".': (
            ' " This is a string with " punctuation ( 1845 - 1986 ) " . '
        ),
        "U.S.": "U . S . ",
        "Beyoncé": "Beyonc é ",  # RE2's \W, which is ASCII
        "snake_case 7": "snake_case 7",
    }.items():
        yield repr(text), pad_punctuation(text), expected
