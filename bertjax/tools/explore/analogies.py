"""Word analogies, a is to b as c is to d, by vector arithmetic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bertjax.tools.explore.neighbors import unit_rows

_CHUNK = 256  # questions answered at once: a row of cosines each


@dataclass(frozen=True)
class Question:
    """`a` is to `b` as `c` is to `d`, of a section such as family or capitals."""

    section: str
    a: str
    b: str
    c: str
    d: str

    @property
    def words(self) -> tuple[str, str, str, str]:
        return self.a, self.b, self.c, self.d


@dataclass(frozen=True)
class Score:
    """Answers to the questions of one section: those with an unknown word count in `unknown` alone."""

    correct: int
    answered: int
    unknown: int

    @property
    def accuracy(self) -> float | None:
        """Percent of the answered questions; None without one."""
        return 100 * self.correct / self.answered if self.answered else None


@dataclass(frozen=True)
class Analogies:
    """The scores of each section and of all questions, and the answer to each question: None with an unknown word."""

    sections: Mapping[str, Score]
    total: Score
    answers: Sequence[str | None]


def analogies(vectors: np.ndarray, index: Mapping[str, int], questions: Sequence[Question]) -> Analogies:
    """Answer questions by 3CosAdd: the word whose vector has the largest cosine to b - a + c.

    Vectors [V, D] are scaled to length 1 first, and the three words of the question are no answers (Mikolov et al.
    2013, arXiv 1301.3781 section 4.1; gensim's KeyedVectors.evaluate_word_analogies). `index`: {word: row of vectors},
    the words that can be answers.
    """
    words, rows = list(index), np.array(list(index.values()), int)
    place = {word: number for number, word in enumerate(words)}
    units = unit_rows(np.asarray(vectors)[rows]) if words else np.zeros((0, 1), np.float32)
    answers: list[str | None] = [None] * len(questions)
    known = [number for number, question in enumerate(questions) if all(word in place for word in question.words)]
    for start in range(0, len(known), _CHUNK):
        chunk = known[start : start + _CHUNK]
        a, b, c = (np.array([place[questions[i].words[part]] for i in chunk]) for part in range(3))
        cosines = unit_rows(units[b] - units[a] + units[c]) @ units.T
        for part in (a, b, c):
            cosines[np.arange(len(chunk)), part] = -np.inf
        for number, best in zip(chunk, cosines.argmax(axis=1).tolist(), strict=True):
            answers[number] = words[best]
    names = dict.fromkeys(question.section for question in questions)
    sections = {name: _score([(q, x) for q, x in zip(questions, answers, strict=True) if q.section == name])
                for name in names}  # fmt: skip
    return Analogies(sections, _score(list(zip(questions, answers, strict=True))), answers)


def _score(answered: Sequence[tuple[Question, str | None]]) -> Score:
    unknown = sum(answer is None for _, answer in answered)
    return Score(sum(answer == question.d for question, answer in answered), len(answered) - unknown, unknown)
