"""WordPiece: trained so that the same text gives the same bytes, or loaded from the files other tools write.

The Rust library `tokenizers` does the work; neither transformers nor a network is ever needed. `load`, `from_json` and
`from_file` give SentencePiece tokenizers too (`sentencepieces`).
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from bertjax.config.data_schema import SentencePieceConfig, TokenizerConfig
from bertjax.data import remote, sentencepieces
from bertjax.data.files import resolve
from bertjax.errors import UserError

VERSION = 1  # of the training recipe, part of the cache key
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0..4 of a trained vocabulary
# tokenization.py of google-research/bert gives up on words above 200 characters (transformers: 100).
MAX_CHARS_PER_WORD = 200
MAX_ALPHABET = 1000


class Tokenizer:
    """A WordPiece tokenizer and what the data pipeline asks of it.

    `pieces` lists the pieces by id, `is_continuation [V]` (bool) marks the '##' pieces, `sha256` identifies the
    tokenizer. Text never makes a special token: "[MASK]" in a text is five characters in brackets, as in the reference.
    """

    def __init__(self, backend: tokenizers.Tokenizer, where: str) -> None:
        """`where` names the file in the errors about missing special tokens."""
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self.backend = backend
        vocab = backend.get_vocab(with_added_tokens=True)
        for piece in SPECIALS:
            if piece not in vocab:
                raise UserError(f"{where}: the vocabulary has no {piece}; BERT needs {' '.join(SPECIALS)}")
        if sorted(vocab.values()) != list(range(len(vocab))):
            raise UserError(f"{where}: the ids are not 0..{len(vocab) - 1} without gaps; export the tokenizer again")
        self.vocab_size = len(vocab)
        self.pieces = sorted(vocab, key=vocab.__getitem__)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (vocab[piece] for piece in SPECIALS)
        self.is_continuation = np.array([piece.startswith("##") for piece in self.pieces])
        self.lowercase = getattr(backend.normalizer, "lowercase", False) is True
        state = json.loads(backend.to_str())
        self.json = json.dumps(state, ensure_ascii=False, indent=1, sort_keys=False) + "\n"
        self.sha256 = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Piece ids of each text, without special tokens. Runs on all cores unless TOKENIZERS_PARALLELISM=false."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_batch_offsets(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """(piece ids, offsets) of each text, without special tokens; an offset is (start, stop) in characters of it."""
        found = self.backend.encode_batch(texts, add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in found]

    def decode(self, ids: list[int]) -> str:
        """Pieces joined to words; special tokens are left out."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Writes vocab.txt and tokenizer.json into `folder`, each in one piece; tokenizer.json comes last."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("vocab.txt", "\n".join(self.pieces) + "\n"), ("tokenizer.json", self.json)):
            scratch = folder / f".{name}.{os.getpid()}"
            scratch.write_text(text, encoding="utf-8", newline="\n")
            os.replace(scratch, folder / name)


# A Tokenizer or a SentencePieceTokenizer: who asks for cls_id or eos_id knows which.
AnyTokenizer: TypeAlias = Any


def load(
    config: TokenizerConfig | SentencePieceConfig,
    base: Path,
    *,
    vocab_size: int,
    train_source_documents: Callable[[], Iterator[list[str]]] | None,
    cache: Path,
    fingerprint: str | None = None,
) -> AnyTokenizer:
    """The tokenizer of a config: read from `config.path`, else trained on the documents (lists of sentences) given.

    A trained one is kept under `cache`, keyed by the options and the text: by `fingerprint` where the caller knows one
    (`sources.fingerprint`), else by a hash of the documents. `config.vocab_size` goes before `vocab_size`.
    """
    if config.path is not None:
        path = remote.small_files(resolve(config.path, base), [*FILES, "tokenizer_config.json"])
        said = config.model_dump(include={"lowercase", "extra_ids"})  # each kind has one of them
        found = from_file(path, **said)
        if isinstance(found, Tokenizer) == isinstance(config, SentencePieceConfig):
            has = "WordPiece" if isinstance(found, Tokenizer) else "SentencePiece"
            raise UserError(f"{path}: is a {has} tokenizer; tokenizer.kind is {config.kind}: name one of that kind")
        return found
    if train_source_documents is None:
        raise UserError("tokenizer: neither 'path' nor text to train on; set tokenizer.path or tokenizer.train_on")
    options: dict[str, Any] = {"vocab_size": config.vocab_size or vocab_size}
    trainer: Callable[..., AnyTokenizer]
    if isinstance(config, SentencePieceConfig):
        trainer = sentencepieces.train
        options |= {"extra_ids": config.extra_ids, "character_coverage": config.character_coverage}
        recipe = [config.kind, sentencepieces.VERSION, sentencepiece.__version__, *options.values()]
    else:
        trainer = train
        options |= {"lowercase": config.lowercase, "min_frequency": config.min_frequency}
        recipe = [VERSION, tokenizers.__version__, *options.values()]
    recipe.append(fingerprint or _hash_documents(train_source_documents()))
    folder = cache / "tokenizers" / hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:24]
    if not (folder / "tokenizer.json").is_file():
        trainer(train_source_documents, **options).save(folder)
    return from_file(folder)


def from_json(text: str, where: str) -> AnyTokenizer:
    """The tokenizer that the `json` of a tokenizer describes, of either kind; `where` is named in errors."""
    try:
        state = json.loads(text)
        if isinstance(state, dict) and state.get("type") == "sentencepiece":
            return sentencepieces.from_state(state, where)
        return Tokenizer(tokenizers.Tokenizer.from_str(text), where)
    except Exception as error:  # the library raises bare Exception
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: not a tokenizer.json ({str(error)[:120]})") from None


FILES = ("spiece.model", "tokenizer.json", "vocab.txt")  # what a folder may hold, the first found is read


def from_file(path: Path, *, lowercase: bool = True, extra_ids: int = sentencepieces.EXTRA_IDS) -> AnyTokenizer:
    """A tokenizer from *.model (SentencePiece), tokenizer.json, vocab.txt, or a folder with one of them.

    `lowercase` holds for a vocab.txt and `extra_ids` for a *.model that say nothing themselves; a tokenizer.json, or a
    tokenizer_config.json beside the file, goes before them. Raises UserError for anything that is not complete.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            raise UserError(
                f"{path}: the folder holds neither tokenizer.json nor vocab.txt nor spiece.model; name a file"
            )
        path = found[0]
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; give a vocab.txt, a tokenizer.json, a spiece.model or a folder with one"
        )
    if path.suffix == ".model":
        return sentencepieces.from_model(path, extra_ids=extra_ids)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; tokenizer.path takes a vocab.txt or a tokenizer.json") from None
    if not text.strip():
        raise UserError(f"{path}: the file is empty; copy or export it again")
    if path.suffix == ".json":
        return _from_json(path, text)
    return Tokenizer(wordpiece(_read_vocab(path, text), lowercase=_declared_case(path, lowercase)), str(path))


def wordpiece(vocab: dict[str, int], *, lowercase: bool) -> tokenizers.Tokenizer:
    """BERT's tokenizer over a vocabulary {piece: id}: the reference's normalisation and greedy longest match."""
    model = models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=MAX_CHARS_PER_WORD)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    if "[CLS]" in vocab and "[SEP]" in vocab:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[(piece, vocab[piece]) for piece in ("[CLS]", "[SEP]")],
        )
    backend.add_special_tokens([piece for piece in SPECIALS if piece in vocab])
    return backend


def train(
    documents: Callable[[], Iterator[list[str]]], *, vocab_size: int, lowercase: bool, min_frequency: int = 2
) -> Tokenizer:
    """A WordPiece vocabulary of at most `vocab_size` pieces: the same for the same text, on every run and machine.

    The library's trainer numbers the letters in the order of a hash map, which differs from run to run and changes ties
    between merges (huggingface/tokenizers issue 1794). Naming every letter up front, sorted, as a special token leaves
    it nothing to number; the vocabulary is then lifted out and only the five real specials stay special.
    """
    if vocab_size < 100:
        raise UserError(f"tokenizer.vocab_size: {vocab_size} is too small for letters and words; give at least 100")
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
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
        special_tokens=SPECIALS + first + later,
        continuing_subword_prefix="##",
        show_progress=False,
    )
    trainee.train_from_iterator(itertools.chain.from_iterable(documents()), trainer)
    return Tokenizer(wordpiece(trainee.get_vocab(), lowercase=lowercase), "the trained tokenizer")


def _words(documents: Callable[[], Iterator[list[str]]], normalizer: normalizers.Normalizer) -> list[str]:
    """The different words of a text, counted by the library's threads."""
    counter = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    counter.normalizer = normalizer
    counter.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordLevelTrainer(vocab_size=2**31 - 1, min_frequency=1, special_tokens=[], show_progress=False)
    counter.train_from_iterator(itertools.chain.from_iterable(documents()), trainer)
    return sorted(counter.get_vocab())


def _alphabet(words: list[str], limit: int) -> tuple[list[str], list[str]]:
    """The letters that stand in the most different words, at most `limit`, and the others; ties by code point."""
    spread: dict[str, int] = {}
    for word in words:
        for letter in set(word):
            spread[letter] = spread.get(letter, 0) + 1
    ranked = sorted(spread, key=lambda letter: (-spread[letter], letter))
    return sorted(ranked[:limit]), sorted(ranked[limit:])


def _hash_documents(documents: Iterator[list[str]]) -> str:
    digest = hashlib.sha256()
    for sentences in documents:
        digest.update("\n".join(sentences).encode() + b"\n\n")
    return digest.hexdigest()


def _read_vocab(path: Path, text: str) -> dict[str, int]:
    # split at newlines only: str.splitlines would also cut at the separators that some vocabularies list
    vocab: dict[str, int] = {}
    for number, line in enumerate(text.rstrip("\r\n").split("\n"), 1):
        piece = line.rstrip("\r")
        if not piece:
            raise UserError(f"{path}: line {number}: empty; a vocabulary has one piece on every line")
        if piece in vocab:
            raise UserError(f"{path}: line {number}: '{piece}' stands on line {vocab[piece] + 1} already; remove one")
        vocab[piece] = number - 1
    return vocab


def _declared_case(path: Path, otherwise: bool) -> bool:
    """`do_lower_case` of the tokenizer_config.json beside a vocab.txt."""
    beside = path.with_name("tokenizer_config.json")
    if not beside.is_file():
        return otherwise
    try:
        declared = json.loads(beside.read_text(encoding="utf-8")).get("do_lower_case", otherwise)
    except (ValueError, AttributeError):
        raise UserError(f"{beside}: not a JSON object; repair or remove it") from None
    return declared is not False


def _from_json(path: Path, text: str) -> AnyTokenizer:
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); export the tokenizer again") from None
    model = state.get("model") if isinstance(state, dict) else None
    model = model if isinstance(model, dict) else {}
    kind = model.get("type", "WordPiece" if "max_input_chars_per_word" in model else None)
    if kind == "Unigram":
        return sentencepieces.from_unigram(state, str(path))
    if kind != "WordPiece":
        said = f"a {kind} tokenizer" if kind else "no tokenizer.json of the tokenizers library"
        raise UserError(f"{path}: is {said}; bertjax reads WordPiece (BERT, DistilBERT) and Unigram (T5)")
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001  (the library raises bare Exception)
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: the tokenizers library cannot read it ({reason}); export it again") from None
    return Tokenizer(backend, str(path))
