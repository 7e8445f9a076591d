"""Rule-based English sentence splitting: deterministic, no model, no download, tens of megabytes a second.

BERT's pre-training data wants one sentence a line (google-research/bert, README, "Pre-training with BERT"); most text
does not come that way. A wrong split costs little there, so the rules are few: they know abbreviations, initials,
decimals, ellipses, quotes and enumerations, and keep headings and list items apart.
"""

import re

VERSION = 1  # part of every fingerprint: raise it when the output changes

# Abbreviations that a capital letter follows without a new sentence.
_TITLES = frozenset(
    "mr mrs ms messrs mme mmes mlle dr drs prof rev revd fr sr st ste hon gen maj col lt capt cpt cmdr sgt cpl adm "
    "brig gov pres sen rep amb supt insp pvt mt ft vs viz cf eg ie op ed eds trans fig figs eq eqs sec ch chap vol "
    "vols pt approx repr univ dept assn e.g i.e a.k.a esq".split()
)
# Abbreviations that can close a sentence: they do when a word that often opens one follows.
_CLOSERS = frozenset(
    "etc al inc co corp ltd bros jr sq dep est jan feb mar apr jun jul aug sept oct nov dec a.m p.m b.c a.d b.c.e c.e "
    "ph.d m.d".split()
)
_OPENERS = frozenset(
    "the a an this that these those it its he she they we you i his her their our my in on at by for from with after "
    "before when while although though as if since because but and or so then there here however what who where why "
    "how to both all some many most several one no not during despite today according another each such under until "
    "every yet once nor perhaps soon later meanwhile also thus therefore".split()
)
# Abbreviations that a number follows: "No. 6", "d. 741", "Nov. 5".
_NUMBERED = frozenset(
    "no nos fig figs eq vol vols ch chap sec art pt pp p op mt c ca cca d b r fl jan feb mar apr jun jul aug sept oct "
    "nov dec vv v ll".split()
)

# A terminator with closing quotes or brackets, then space, then what may open a sentence.
_BOUNDARY = re.compile(
    r"(?P<end>[.!?\u2026]+)(?P<close>[\"'\u201d\u2019\u00bb)\]*_]*(?:\[[^\]]{1,40}\])*)(?P<space>\s+)"
    r"(?=[\"'\u201c\u2018\u00ab(\[\u00bf\u00a1_*\u2014\u2013-]*(?P<next>[^\W_]))|(?<=[\u3002\uff01\uff1f])(?=\S)"
)
_WORD_BEFORE = re.compile(r"[^\s(\[\"\u201c\u2018\u2014/]*\Z")
_WORD_AFTER = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_ENUMERATOR = re.compile(r"\W*(?:\d{1,3}|[ivxlcIVXLC]{1,6}|[a-zA-Z])\Z")
_MARKER = re.compile(r"\s*(?:#{1,6}|[-*\u2022+])\s+")
_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")  # U.S  J.R.R
_HEADING = re.compile(r"\s*#{1,6}\s+\S")


def split_sentences(text: str) -> list[str]:
    """Sentences in order, white space collapsed. Blank lines, headings (`# `) and list items (`- `) end a sentence.

    Heading and list markers are dropped; every other visible character is kept, in order. No empty strings.
    """
    found: list[str] = []
    for block in _blocks(text):
        found.extend(_split_block(block))
    return found


def _blocks(text: str) -> list[str]:
    """Stretches of text that a sentence cannot cross, each on one line."""
    blocks: list[str] = []
    lines: list[str] = []

    def close() -> None:
        if lines:
            blocks.append(" ".join(" ".join(lines).split()))
            lines.clear()

    for line in text.split("\n"):
        if not line.strip():
            close()
        elif _MARKER.match(line):
            close()
            lines.append(_MARKER.sub("", line, count=1))
            if _HEADING.match(line):
                close()
        else:
            lines.append(line)
    close()
    return [block for block in blocks if block]


def _split_block(block: str) -> list[str]:
    sentences: list[str] = []
    start = 0
    for match in _BOUNDARY.finditer(block):
        if match["end"] is None:  # ideographic full stop: no space follows it
            cut = match.end()
        elif _ends_sentence(block, start, match):
            cut = match.end()
        else:
            continue
        sentences.append(block[start:cut].strip())
        start = cut
    sentences.append(block[start:].strip())
    return [sentence for sentence in sentences if sentence]


def _ends_sentence(block: str, start: int, match: re.Match[str]) -> bool:
    following = match["next"]
    if following.islower():
        return False
    if match["end"] != ".":
        return True  # "What?", "Stop!" and "And then..." end a sentence before a capital
    if match.start() - start < 8 and not match["close"] and _ENUMERATOR.match(block[start : match.start()]):
        return False  # "1. The first" and "IV. The fourth" open a sentence; nothing has been said yet
    return not _is_abbreviation(block, start, match)


def _is_abbreviation(block: str, start: int, match: re.Match[str]) -> bool:
    found = _WORD_BEFORE.search(block, max(start, match.start() - 24), match.start())
    before = found.group() if found else ""
    word = before.lower().lstrip("'\u2019")
    after = _WORD_AFTER.search(block, match.end("space"))
    opener = after is not None and after.group().lower() in _OPENERS and after.group()[0].isupper()
    if match["next"].isdigit():
        return word in _NUMBERED
    if match["close"]:
        return word in _TITLES and not opener
    if word in _TITLES:
        return True
    if len(before) == 1 and before.isalpha() and before.isupper():
        return not opener or (after is not None and len(after.group()) == 1)  # "J. A. Hort", but "vitamin C. The"
    if word in _CLOSERS or _DOTTED.fullmatch(word):
        return not opener
    return False
