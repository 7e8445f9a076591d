"""Byte-level BPE as RoBERTa's: reproducible training of a vocabulary, and the tokenizer over it."""

from collections.abc import Iterator

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from bertjax.data.tokenizers.backend_state import tokenizer_state
from bertjax.data.tokenizers.files import SpecialTokens
from bertjax.data.tokenizers.wordpiece import Documents
from bertjax.errors import UserError

VERSION = 1  # of the training recipe, part of the cache key
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # ids 0..4; the first four as in RoBERTa
_ROLES = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
# Text never gives a special token, as with the tokenizers of `wordpiece` and `sentencepiece` that are trained here.
SPECIAL = SpecialTokens(_ROLES, (), in_text=False, is_native=True)
_LEAST = len(SPECIAL_TOKENS) + 256  # all bytes are pieces, so that no text is unknown


def build_bpe(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """RoBERTa's tokenizer (tokenization_roberta.py of transformers, GPT-2's encoder.py) over a vocabulary.

    `<mask>` takes the white space before it, as the tokenizer.json of roberta-base has it.
    """
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix=""))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", vocab["</s>"]), ("<s>", vocab["<s>"]), trim_offsets=True, add_prefix_space=False
    )
    backend.add_special_tokens([
        tokenizers.AddedToken(token, lstrip=token == "<mask>", normalized=False) for token in SPECIAL_TOKENS
    ])  # fmt: skip
    return backend


def train(documents: Documents, *, vocab_size: int, min_frequency: int = 2) -> tokenizers.Tokenizer:
    """A byte-level BPE of at most `vocab_size` pieces: equal for equal text, on every run and machine.

    Raises UserError for a size without room for the bytes, and for a text without words.
    """
    if vocab_size < _LEAST:
        raise UserError(
            f"tokenizer.vocab_size: {vocab_size} is too small for {len(SPECIAL_TOKENS)} special tokens and 256 bytes; "
            f"give at least {_LEAST}"
        )
    trainee = tokenizers.Tokenizer(models.BPE())
    trainee.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # All letters are given, and the trainer numbers them by code point; ties between merges go to the lower ids.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=SPECIAL_TOKENS, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    trainee.train_from_iterator(_texts(documents), trainer)
    model = tokenizer_state(trainee)["model"]
    if len(model["vocab"]) <= _LEAST:
        raise UserError(
            f"tokenizer.train_on: no two letters stand together {min_frequency} times (min_frequency); check the "
            "source and its text_field"
        )
    return build_bpe(model["vocab"], [tuple(pair) for pair in model["merges"]])


def _texts(documents: Documents) -> Iterator[str]:
    """Sentences as rows read them: all but the first of a document behind a space, a part of their first word."""
    for sentences in documents():
        for number, sentence in enumerate(sentences):
            yield f" {sentence}" if number else sentence
