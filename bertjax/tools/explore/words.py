"""The words and analogy questions of `bertjax explore` where no file is given: common English words, lower case."""

from collections.abc import Mapping

from bertjax.tools.explore.analogies import Question

GROUPS: Mapping[str, tuple[str, ...]] = {
    "animals": ("dog", "cat", "horse", "bird", "fish", "lion", "wolf", "sheep"),
    "countries": ("france", "germany", "italy", "spain", "japan", "china", "russia", "canada"),
    "cities": ("paris", "berlin", "rome", "madrid", "london", "moscow", "tokyo", "vienna"),
    "people": ("king", "queen", "man", "woman", "boy", "girl", "father", "mother"),
    "numbers": ("one", "two", "three", "four", "five", "six", "seven", "eight"),
    "verbs": ("walk", "run", "eat", "write", "speak", "sing", "think", "buy"),
    "past": ("walked", "ran", "ate", "wrote", "spoke", "sang", "thought", "bought"),
    "colors": ("red", "blue", "green", "yellow", "black", "white", "brown", "gray"),
}

# Pairs of one relation; each pair asks for the second word of the two pairs after it.
_PAIRS: Mapping[str, str] = {
    "capitals": "paris france berlin germany rome italy madrid spain london england moscow russia tokyo japan "
    "vienna austria",
    "family": "man woman king queen boy girl father mother son daughter brother sister husband wife uncle aunt",
    "past tense": "walk walked run ran eat ate write wrote speak spoke think thought buy bought go went",
    "plural": "dog dogs car cars house houses city cities child children man men woman women book books",
    "comparative": "good better bad worse large larger small smaller old older young younger strong stronger "
    "long longer",
    "opposite": "good bad big small hot cold up down left right old new rich poor high low",
}
_NEXT = 2


def default_questions() -> list[Question]:
    """The built-in questions: 16 of each section."""
    found = []
    for section, listed in _PAIRS.items():
        words = listed.split()
        pairs = list(zip(words[::2], words[1::2], strict=True))
        for number, pair in enumerate(pairs):
            for step in range(1, _NEXT + 1):
                found.append(Question(section, *pair, *pairs[(number + step) % len(pairs)]))
    return found
