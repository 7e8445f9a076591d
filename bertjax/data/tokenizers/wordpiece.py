"""BERT's WordPiece: tokenizers over a vocabulary, and reproducible training of one."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from bertjax.errors import UserError

VERSION = 1  # of the training recipe, part of the cache key
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0..4 of a trained vocabulary
# tokenization.py of google-research/bert gives up on words above 200 characters (transformers: 100).
MAX_CHARS_PER_WORD = 200
MAX_ALPHABET = 1000
Documents = Callable[[], Iterator[list[str]]]


def build_wordpiece(
    vocab: dict[str, int], *, lowercase: bool, strip_accents: bool | None = None, tokenize_chinese_chars: bool = True
) -> tokenizers.Tokenizer:
    """BERT's tokenizer over a vocabulary {piece: id}: the reference's normalization and greedy longest match.

    `strip_accents` None follows `lowercase`, which is BERT's rule.
    """
    model = models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=MAX_CHARS_PER_WORD)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = _normalizer(lowercase, strip_accents, tokenize_chinese_chars)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    if "[CLS]" in vocab and "[SEP]" in vocab:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[(piece, vocab[piece]) for piece in ("[CLS]", "[SEP]")],
        )
    backend.add_special_tokens([piece for piece in SPECIAL_TOKENS if piece in vocab])
    return backend


def _normalizer(lowercase: bool, strip_accents: bool | None, chinese: bool) -> normalizers.Normalizer:
    return normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=chinese)


def train(
    documents: Documents, *, vocab_size: int, lowercase: bool, min_frequency: int = 2,
    strip_accents: bool | None = None, tokenize_chinese_chars: bool = True,
) -> tokenizers.Tokenizer:  # fmt: skip
    """A WordPiece vocabulary of at most `vocab_size` pieces: equal for equal text, on every run and machine.

    The library's trainer numbers letters in the varying order of a hash map, which changes ties between merges
    (huggingface/tokenizers issue 1794), so all letters are given, sorted, as special tokens for training.
    """
    if vocab_size < 100:
        raise UserError(f"tokenizer.vocab_size: {vocab_size} is too small for letters and words; give at least 100")
    normalizer = _normalizer(lowercase, strip_accents, tokenize_chinese_chars)
    words = _words(documents, normalizer)
    if not words:
        raise UserError("tokenizer.train_on: the text holds no words; check the source and its text_field")
    alphabet, rest = _alphabet(words, min(MAX_ALPHABET, vocab_size // 4))
    kept = set(alphabet)
    first = sorted({word[0] for word in words} & kept)
    later = sorted({"##" + letter for word in words for letter in word[1:]} & {"##" + letter for letter in kept})
    trainee = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    steps: list[Any] = [normalizer]
    if rest:  # rare letters become spaces, for training only: the trainer would number them
        letters = "".join(f"\\x{{{ord(letter):x}}}" for letter in rest)
        steps.append(normalizers.Replace(tokenizers.Regex(f"[{letters}]"), " "))
    trainee.normalizer = normalizers.Sequence(steps)
    trainee.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=SPECIAL_TOKENS + first + later,
        continuing_subword_prefix="##",
        show_progress=False,
    )
    trainee.train_from_iterator(itertools.chain.from_iterable(documents()), trainer)
    return build_wordpiece(
        trainee.get_vocab(), lowercase=lowercase, strip_accents=strip_accents,
        tokenize_chinese_chars=tokenize_chinese_chars,
    )  # fmt: skip


def _words(documents: Documents, normalizer: normalizers.Normalizer) -> list[str]:
    """The distinct words of a text, sorted."""
    counter = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    counter.normalizer = normalizer
    counter.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordLevelTrainer(vocab_size=2**31 - 1, min_frequency=1, special_tokens=[], show_progress=False)
    counter.train_from_iterator(itertools.chain.from_iterable(documents()), trainer)
    return sorted(counter.get_vocab())


def _alphabet(words: list[str], limit: int) -> tuple[list[str], list[str]]:
    """(the `limit` letters that occur in the most distinct words, the others); ties by code point."""
    spread: dict[str, int] = {}
    for word in words:
        for letter in set(word):
            spread[letter] = spread.get(letter, 0) + 1
    ranked = sorted(spread, key=lambda letter: (-spread[letter], letter))
    return sorted(ranked[:limit]), sorted(ranked[limit:])


def read_vocab(text: str) -> dict[str, int]:
    """{piece: id} of a vocab.txt: an id is the number of a line, the last of equal ones, as in transformers."""
    # split at newlines only: str.splitlines would also cut at the separators that some vocabularies list
    return {line.rstrip("\r"): number for number, line in enumerate(text.rstrip("\r\n").split("\n"))}
