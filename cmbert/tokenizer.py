"""The tokenizer as the rest of the code sees it: special ids, byte length of every token, a fingerprint."""

import hashlib
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from cmbert.errors import ConfigError, first_line
from cmbert.files.operations import read_input

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # their ids are their positions here
PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(len(SPECIAL_TOKENS))
NUM_SPECIAL_TOKENS = len(SPECIAL_TOKENS)
SPECIALS_PER_SEGMENT = 2  # a segment of a document goes to the model as [CLS] tokens [SEP]
SENTENCE_ENDS = ("。", "！", "？", "；", "\n")
TOKENIZER_FILE = "tokenizer.json"
PANIC = "PanicException"  # what Rust's panics become; no Exception, and in no module from which it could be imported
REFUSALS = ("ValueError", "Exception", PANIC)
PROBE_TEXT = "今天 Isn't it 3.5?\r\n😀e\u0301\u3000[MASK]\0"  # what any tokenizer must take
CONTINUATION_BYTES = frozenset(
    # UTF-8's bytes 0x80 to 0xBF as a byte-level vocabulary spells them (GPT-2's bytes_to_unicode): what can be printed
    # as itself, the others from U+0100 up; 34 bytes below 0x80 come before them there.
    [*map(chr, range(0x122, 0x143)), *map(chr, range(0xA1, 0xAD)), chr(0x143), *map(chr, range(0xAE, 0xC0))]
)


class RefusalError(Exception):
    """What a tokenizer says of a file or of texts that it does not take, in one line."""


@contextmanager
def refusing() -> Iterator[None]:
    """Turn what tokenizers written in Rust raise into RefusalError; an interrupt or lack of memory is none."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ not in REFUSALS:
            raise
        raise RefusalError(first_line(error)) from error


@dataclass(frozen=True)
class Tokenizer:
    """A loaded byte-level BPE tokenizer."""

    backend: tokenizers.Tokenizer
    """Encodes text that looks like a special token ("[MASK]") as ordinary text."""
    fingerprint: str
    """Hash of tokenizer.json; shards and checkpoints carry it."""
    directory: Path

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` without [CLS] and [SEP]."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`; lossless for ids that `encode` made, up to the tokenizer's normaliser."""
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def normalize(self, text: str) -> str:
        """Return `text` as the tokenizer sees it (Unicode NFC for tokenizers made here)."""
        normalizer = self.backend.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)

    def token_byte_lengths(self) -> np.ndarray:
        """Return the UTF-8 length of every token, shape (vocab_size,), int64; special tokens count 0.

        A byte-level vocabulary spells each byte as one character, so a token's spelling is as long as its bytes.
        """
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, index in self.backend.get_vocab(with_added_tokens=True).items():
            lengths[index] = 0 if index < NUM_SPECIAL_TOKENS else len(token)
        return lengths

    def token_character_lengths(self) -> np.ndarray:
        """Return how many characters begin in every token, shape (vocab_size,), int64; special tokens count 0."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, index in self.backend.get_vocab(with_added_tokens=True).items():
            begins = 0 if index < NUM_SPECIAL_TOKENS else sum(spelled not in CONTINUATION_BYTES for spelled in token)
            lengths[index] = begins
        return lengths

    def sentence_end_tokens(self) -> np.ndarray:
        """Return which tokens end a sentence (their text ends in one of 。！？；\\n), shape (vocab_size,), bool."""
        texts = self.backend.decode_batch([[index] for index in range(self.vocab_size)])
        return np.array([text.endswith(SENTENCE_ENDS) for text in texts])


def load_tokenizer(directory: str | Path, *, vocab_size: int | None = None) -> Tokenizer:
    """Load `directory`/tokenizer.json; `vocab_size` is the model's, if there is one to fit.

    Raises ConfigError when the file is missing, unreadable, or has other special ids or another size.
    """
    directory = Path(directory)
    path = directory / TOKENIZER_FILE
    raw = read_input(path)
    if raw is None:
        raise ConfigError(
            f"{path}: no such file; a tokenizer's folder is made of text: "
            f"`data_tools train-tokenizer --input TEXT --output {_new_folder(directory)}`"
        )
    try:
        backend = _open(raw)
    except RefusalError as error:
        raise ConfigError(f"{path}: not a tokenizer.json that can be used: {error}") from error
    for expected, token in enumerate(SPECIAL_TOKENS):
        found = backend.token_to_id(token)
        if found != expected:
            raise ConfigError(
                f"{path}: {token} has id {found}, must be {expected}; train one with `data_tools train-tokenizer`"
            )
    found_size = backend.get_vocab_size(with_added_tokens=True)
    if vocab_size not in (None, found_size):
        raise ConfigError(
            f"model.vocab_size: {vocab_size}, but {directory} has {found_size} ids; write vocab_size = {found_size} in "
            f"the recipe's [model], or add --set model.vocab_size={found_size}"
        )
    return Tokenizer(backend=backend, fingerprint=hashlib.blake2b(raw, digest_size=16).hexdigest(), directory=directory)


def _new_folder(directory: Path) -> str:
    """Return `directory` for a command line if a tokenizer can be made there, else a word for another folder."""
    return "TOKENIZER" if directory.exists() else shlex.quote(str(directory))


def _open(raw: bytes) -> tokenizers.Tokenizer:
    """Return the tokenizer of a file's contents, which gives all ids of a text. Raises RefusalError for any other."""
    with refusing():
        backend = tokenizers.Tokenizer.from_buffer(raw)
        backend.encode_special_tokens = True
        backend.no_truncation()  # a file may say that texts are cut, which loses them silently, or filled up
        backend.no_padding()
        ids = sorted(backend.get_vocab(with_added_tokens=True).values())
        backend.decode(backend.encode(PROBE_TEXT, add_special_tokens=False).ids)
    if ids != list(range(len(ids))):
        raise RefusalError(f"its {len(ids)} tokens have not the ids 0 to {len(ids) - 1}, each once")
    if getattr(backend.model, "dropout", None):
        raise RefusalError(f"model.dropout {backend.model.dropout:g} makes other ids of the same text; set it to null")
    return backend
