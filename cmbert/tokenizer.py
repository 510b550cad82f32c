"""The tokenizer as the rest of the code sees it: what its ids are for, how much text each is, a fingerprint."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

from cmbert.errors import ConfigError, first_line
from cmbert.files.json_types import read_as
from cmbert.files.operations import read_input
from cmbert.vocabulary import NEEDED, ROLES, Vocabulary, make_vocabulary, role_names

SPECIALS_PER_SEGMENT = 2  # a segment of a document goes to the model as [CLS] tokens [SEP]
SENTENCE_ENDS = ("。", "！", "？", "；", "\n")
TOKENIZER_FILE, SETTINGS_FILE = "tokenizer.json", "tokenizer_config.json"
EXTENSION_FILE = "extension.json"
PANIC = "PanicException"  # what Rust's panics become; no Exception, and in no module from which it could be imported
REFUSALS = ("ValueError", "Exception", PANIC)
PROBE_TEXT = "今天 Isn't it 3.5?\r\n😀e\u0301\u3000[MASK]\0"  # what any tokenizer must take
CONTINUATION_BYTES = frozenset(
    # UTF-8's bytes 0x80 to 0xBF as a byte-level vocabulary spells them (GPT-2's bytes_to_unicode): what can be printed
    # as itself, the others from U+0100 up; 34 bytes below 0x80 come before them there.
    [*map(chr, range(0x122, 0x143)), *map(chr, range(0xA1, 0xAD)), chr(0x143), *map(chr, range(0xAE, 0xC0))]
)


CONTINUING = "##"  # WordPiece's spelling of a token that goes on with a word
BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")  # a byte in vocabularies that spell other text as it is
KEEPING = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase"}  # normalisers that change nothing when they are applied again
CUTTING = {"ByteLevel", "Split", "Digits", "Punctuation", "UnicodeScripts"}  # pre-tokenisers that keep all characters
BESIDE_OTHERS = re.compile(r" (?=[^\x00-\x7f])|(?<=[^\x00-\x7f]) ")  # spaces that WordPiece's decoder puts around Hanzi


class Extension(TypedDict):
    """What extension.json of a tokenizer says that this program needs: what it was made of by adding ids."""

    parent_fingerprint: str
    parent_ids: int
    """Its number of ids; the new ones follow."""
    parts: list[list[int]]
    """For each new id those that spelled the same text before."""


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
    """A loaded tokenizer: byte-level BPE as made here, or another's BPE or WordPiece."""

    backend: tokenizers.Tokenizer
    """Encodes text that looks like a special token ("[MASK]") as ordinary text."""
    fingerprint: str
    """Hash of tokenizer.json, and of the special ids unless they are 0 to 4; shards and checkpoints carry it."""
    directory: Path
    vocabulary: Vocabulary
    """What the ids are for."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self.vocabulary.size

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether its tokens, laid end to end, spell the normalised text byte by byte, whatever the text."""
        model, added = self.backend.model, self.backend.get_added_tokens_decoder().values()
        steps, before = _parts(self.backend.pre_tokenizer), _parts(self.backend.normalizer)
        spelling = [step for step in steps if step["type"] == "ByteLevel"]
        return (
            type(model).__name__ == "BPE"
            and not (model.continuing_subword_prefix or model.end_of_word_suffix)
            and len(spelling) == 1
            and not spelling[0].get("add_prefix_space")
            and all(step["type"] in CUTTING and step.get("behavior") != "Removed" for step in steps)
            and {step["type"] for step in before} <= KEEPING
            and not any(token.lstrip or token.rstrip for token in added if not token.special)
            and all(self.backend.token_to_id(byte) is not None for byte in pre_tokenizers.ByteLevel.alphabet())
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` without [CLS] and [SEP]."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`; of a byte-level tokenizer what `encode` took, up to its normaliser."""
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def decode_after(self, before: list[int], ids: list[int]) -> str:
        """Return the text of `ids` as it follows that of the token `before` (at most one), for people to read.

        Tokens that go on with a word or begin one say so beside another token only; special tokens are shown.
        """
        if self.is_byte_level or not before:
            return self._readable(ids)
        both, alone = self._readable(before + ids), self._readable(before)
        return both.removeprefix(alone) if both.startswith(alone) else self._readable(ids)

    def _readable(self, ids: list[int]) -> str:
        text = self.decode(ids, skip_special_tokens=False)
        return BESIDE_OTHERS.sub("", text) if type(self.backend.model).__name__ == "WordPiece" else text

    def normalize(self, text: str) -> str:
        """Return `text` as the tokenizer sees it (Unicode NFC for tokenizers made here)."""
        normalizer = self.backend.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)

    def token_byte_lengths(self) -> np.ndarray:
        """Return the UTF-8 length of every token of a byte-level tokenizer, shape (vocab_size,), int64; special ones 0.

        A byte-level vocabulary spells each byte as one character, so a token's spelling is as long as its bytes; tokens
        that were added to it are spelled as they are.
        """
        assert self.is_byte_level
        added = self.backend.get_added_tokens_decoder()
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, index in self.backend.get_vocab(with_added_tokens=True).items():
            lengths[index] = len(token.encode("utf-8") if index in added else token)
        return lengths * self.vocabulary.is_ordinary

    def token_character_lengths(self) -> np.ndarray:
        """Return how many characters begin in every token, shape (vocab_size,), int64; special tokens count 0.

        Of a vocabulary that is not byte-level these are the token's own letters: what a normaliser dropped is in none.
        """
        added = self.backend.get_added_tokens_decoder()
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, index in self.backend.get_vocab(with_added_tokens=True).items():
            if self.is_byte_level and index not in added:
                lengths[index] = sum(spelled not in CONTINUATION_BYTES for spelled in token)
            elif byte := BYTE_TOKEN.fullmatch(token):
                lengths[index] = int(byte[1], 16) & 0xC0 != 0x80
            else:
                lengths[index] = len(token.removeprefix(CONTINUING))
        return lengths * self.vocabulary.is_ordinary

    def sentence_end_tokens(self) -> np.ndarray:
        """Return which tokens end a sentence (their text ends in one of 。！？；\\n), shape (vocab_size,), bool."""
        texts = self.backend.decode_batch([[index] for index in range(self.vocab_size)])
        return np.array([text.endswith(SENTENCE_ENDS) for text in texts])


def _parts(component: Any) -> list[dict[str, Any]]:
    """Return a normaliser or pre-tokeniser as tables, one for each step of a sequence."""
    if component is None:
        return []
    table = json.loads(component.__getstate__())
    steps: list[dict[str, Any]] = table.get("pretokenizers") or table.get("normalizers") or [table]
    return steps


def load_tokenizer(directory: str | Path, *, vocab_size: int | None = None) -> Tokenizer:
    """Load `directory`/tokenizer.json; `vocab_size` is the model's, if there is one to fit.

    Raises ConfigError when the file is missing or unreadable, has no token for padding, [CLS], [SEP] or [MASK], or when
    the model's rows are not as many as its ids, rounded up to a multiple of 64.
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
    vocabulary = _vocabulary(backend, path)
    if vocab_size not in (None, vocabulary.rows):
        padded = "" if vocabulary.rows == vocabulary.size else ", with blank rows up to a multiple of 64"
        raise ConfigError(
            f"model.vocab_size: {vocab_size}, but {directory} has {vocabulary.size} ids{padded}; write vocab_size = "
            f"{vocabulary.rows} in the recipe's [model], or add --set model.vocab_size={vocabulary.rows}"
        )
    digest = hashlib.blake2b(raw, digest_size=16)
    roles = [vocabulary.pad_id, vocabulary.unk_id, vocabulary.cls_id, vocabulary.sep_id, vocabulary.mask_id]
    if vocabulary.special != list(range(len(ROLES))) or roles != vocabulary.special:
        digest.update(repr(roles).encode())
    return Tokenizer(backend, digest.hexdigest(), directory, vocabulary)


def read_extension(tokenizer: Tokenizer) -> Extension | None:
    """Return how a tokenizer extends another; None if it was not made so. Raises ConfigError."""
    path, remedy = tokenizer.directory / EXTENSION_FILE, "make it again by `data_tools extend-tokenizer`"
    extension: Extension | None = read_as(path, Extension, error=ConfigError, remedy=remedy)
    if extension:
        size, old = tokenizer.vocab_size, extension["parent_ids"]
        known = all(ids and min(ids) >= 0 and max(ids) < old for ids in extension["parts"])
        if not known or old + len(extension["parts"]) != size:
            raise ConfigError(f"{path}: its ids are not those of a tokenizer of {size:,}; {remedy}")
    return extension


def _vocabulary(backend: tokenizers.Tokenizer, path: Path) -> Vocabulary:
    """Return what the ids are for: by tokenizer_config.json beside `path`, or by BERT's names. Raises ConfigError."""
    settings_path = path.with_name(SETTINGS_FILE)
    settings = read_as(settings_path, dict[str, Any], error=ConfigError, remedy="take it from the tokenizer's origin")
    roles: dict[str, int] = {}
    for role, names in role_names(settings or {}):
        found = [index for name in names if (index := backend.token_to_id(name)) is not None]
        if found:
            roles[role] = found[0]
        elif role in NEEDED:
            raise ConfigError(
                f"{path}: no token is its {role.upper()}; name one of its tokens as {role}_token in {settings_path}"
            )
    for one, other in (("mask", "pad"), ("mask", "cls"), ("mask", "sep"), ("pad", "cls"), ("pad", "sep")):
        if roles[one] == roles[other]:
            name = backend.id_to_token(roles[one])
            raise ConfigError(f"{settings_path}: {name} is {one}_token and {other}_token; give each its own")
    special = {index for index, token in backend.get_added_tokens_decoder().items() if token.special}
    return make_vocabulary(roles, special, backend.get_vocab_size(with_added_tokens=True))


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
