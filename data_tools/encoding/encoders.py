"""Texts -> token ids, a batch at a time: by fastokens where it proves at start that its ids are `tokenizers`' ids.

Some fast encoders silently ignore parts of a tokenizer.json, so none is trusted by name: on a probe text of hard cases
and random characters every id must agree, or `tokenizers` itself is used and the log says why. A text that the fast
encoder refuses (a regular expression that runs out of stack in some 1,400 letters in a row) goes to `tokenizers`. So
do all texts whose tokens' places must be asked for (tokenizers that are not byte-level).
"""

import copy
import importlib.metadata
import importlib.util
import logging
import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import tokenizers

from cmbert.errors import first_line
from cmbert.seeding import generator
from cmbert.tokenizer import TOKENIZER_FILE, RefusalError, Tokenizer, refusing

logger = logging.getLogger(__name__)

FAST_ENCODER = "fastokens"  # 8 times as fast as tokenizers on one core (make bench)
PROBE = (
    "他在北京大学学习计算机科学，每天读很多书！人民日报报道：经济保持了平稳增长；改革继续推进。",
    "I bought 3 books for £12.50 on 2024-01-31; GPT-4v2.0 isn't it?  价格是１２元。\r\n\r\n\t第二行\u3000全角空格",
    "[CLS] [MASK] [SEP] [PAD][UNK] <s>",
    "😀👨\u200d👩\u200d👧🇨🇳 𠮷野家 㐀 \uf900 e\u0301 ä \u1100\u1161\u11a8 नमस्ते สวัสดี العربية עברית ١٢٣ ½ Ⅷ ①々〇",
    "a" * 300 + "哈" * 300 + "。" * 300 + " " * 300 + "\n" * 300 + "0123456789" * 30,
    "",
    # Runs on both sides of what PCRE2's stack holds of a repeated group: 1,364 letters, with marks among them more.
    *(
        run * (characters // len(run))
        for run in ("ACGT", "ж", "か", "ア", "한", "สวัสดี", "བོད", "e\u0301", "哈", "-=", "😀", "7", " ", "\n")
        for characters in (1_300, 4_000)
    ),
)
PROBE_RANGES = ((0x20, 0x7F), (0xA0, 0x500), (0x2000, 0x2BFF), (0x3000, 0x9FFF), (0xF900, 0xFFEF), (0x1F000, 0x323AF))
PROBE_TEXTS, PROBE_CHARACTERS = 64, 256  # of random characters, half of them common Hanzi

# Each of these is NFC and stays what it is beside any other of them (a test goes through all).
INERT_CHARACTERS = "\x00-\u02ff\u2010-\u2027\u3000-\u3029\u3030-\u3098\u309b-\u30ff\u3400-\u9fff\uff00-\uffef"
NFC_INERT = re.compile(f"[{INERT_CHARACTERS}]*")

NO_OFFSETS = np.zeros((0, 2), np.int64)


class Encoded(NamedTuple):
    """Texts as ids, laid back to back, without special tokens."""

    ids: np.ndarray  # (tokens,) uint32
    lengths: np.ndarray  # (texts,) int64, tokens; 0 for a text that is refused
    refused: dict[int, str]  # the texts that no encoder takes, by their number in the batch, and what the last one said
    offsets: np.ndarray = NO_OFFSETS  # (tokens, 2) int64, first character and the one behind the last; if asked for


class BatchEncoder(NamedTuple):
    """An encoder with its name and version, for the manifest, and those that take what it refuses, in their order."""

    name: str
    attempts: tuple[Callable[[list[str]], Encoded], ...]  # each raises RefusalError

    def encode(self, texts: list[str]) -> Encoded:
        """Encode each text by the first that takes it."""
        return _encode(self.attempts, texts)


def batch_encoder(tokenizer: Tokenizer) -> BatchEncoder:
    """Return the fastest encoder that gives `tokenizer`'s ids."""
    plain = BatchEncoder(_named("tokenizers"), (lambda texts: _encode_plainly(tokenizer, texts),))
    if importlib.util.find_spec(FAST_ENCODER) is None:
        logger.info("%s is not installed: encoding with tokenizers, slower (pip install 'cmbert[data]')", FAST_ENCODER)
        return plain
    fast = _fast_encoder(tokenizer)
    if isinstance(fast, str):
        logger.info("%s cannot read %s (%s): encoding with tokenizers, slower", FAST_ENCODER, tokenizer.directory, fast)
        return plain
    both = BatchEncoder(_named(FAST_ENCODER), (fast, *plain.attempts))
    texts = [tokenizer.normalize(text) for text in probe_texts()]
    expected, found = plain.encode(texts), both.encode(texts)
    if not (np.array_equal(expected.ids, found.ids) and np.array_equal(expected.lengths, found.lengths)):
        logger.info("%s gives other ids for %s: encoding with tokenizers, slower", both.name, tokenizer.directory)
        return plain
    return both


def offset_encoder(tokenizer: Tokenizer) -> BatchEncoder:
    """Return the encoder that also says which characters of a text each token was made of."""
    backend = copy.deepcopy(tokenizer.backend)
    backend.encode_special_tokens = True
    backend.post_processor = None  # it may take white space out of the offsets; special tokens it is not asked for
    return BatchEncoder(_named("tokenizers"), (lambda texts: _encode_with_offsets(backend, texts),))


def probe_texts() -> list[str]:
    """Return the texts on which an encoder has to agree with `tokenizers`."""
    random = generator(0, "encoder probe")
    texts = list(PROBE)
    for _ in range(PROBE_TEXTS):
        low, high = np.array(PROBE_RANGES)[random.integers(len(PROBE_RANGES), size=PROBE_CHARACTERS)].T
        rare, common = random.integers(low, high), random.integers(0x4E00, 0x9FA6, PROBE_CHARACTERS)
        texts.append("".join(map(chr, np.where(random.random(PROBE_CHARACTERS) < 0.5, rare, common))))
    return texts


def normalize(tokenizer: Tokenizer, text: str) -> str:
    """Return `tokenizer.normalize(text)`, at once where NFC cannot change anything."""
    normalizer = tokenizer.backend.normalizer
    if type(normalizer).__name__ == "NFC" and NFC_INERT.fullmatch(text):
        return text
    return tokenizer.normalize(text)


def _named(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def _encode(attempts: Sequence[Callable[[list[str]], Encoded]], texts: list[str]) -> Encoded:
    """Encode by the first of `attempts`; halve what it refuses down to the text that it means, which the others try."""
    first, *others = attempts
    try:
        return first(texts)
    except RefusalError as error:
        if len(texts) == 1:
            nothing = Encoded(np.zeros(0, np.uint32), np.zeros(1, np.int64), {0: str(error)})
            return _encode(others, texts) if others else nothing
    half = len(texts) // 2
    left, right = _encode(attempts, texts[:half]), _encode(attempts, texts[half:])
    refused = left.refused | {half + number: said for number, said in right.refused.items()}
    ids, lengths, offsets = (
        np.concatenate(pair)
        for pair in ((left.ids, right.ids), (left.lengths, right.lengths), (left.offsets, right.offsets))
    )
    return Encoded(ids, lengths, refused, offsets)


def _encode_plainly(tokenizer: Tokenizer, texts: list[str]) -> Encoded:
    with refusing():
        parts = [encoding.ids for encoding in tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)]
    lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
    return Encoded(np.fromiter(chain.from_iterable(parts), dtype=np.uint32, count=int(lengths.sum())), lengths, {})


def _encode_with_offsets(backend: tokenizers.Tokenizer, texts: list[str]) -> Encoded:
    with refusing():
        parts = backend.encode_batch(texts, add_special_tokens=False)
    lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
    count = int(lengths.sum())
    ids = np.fromiter(chain.from_iterable(part.ids for part in parts), dtype=np.uint32, count=count)
    places = chain.from_iterable(chain.from_iterable(part.offsets for part in parts))
    return Encoded(ids, lengths, {}, np.fromiter(places, dtype=np.int64, count=2 * count).reshape(count, 2))


def _fast_encoder(tokenizer: Tokenizer) -> Callable[[list[str]], Encoded] | str:
    """Return the encoder, or why it cannot read this tokenizer."""
    import fastokens

    try:
        backend = fastokens.Tokenizer.from_file(str(tokenizer.directory / TOKENIZER_FILE))
    except ValueError as error:
        return first_line(error)

    def encode(texts: list[str]) -> Encoded:
        with refusing():
            ids, offsets = backend.encode_batch_flat(texts, add_special_tokens=False, split_special_tokens=True)
        return Encoded(np.frombuffer(ids, "<u4"), np.diff(np.frombuffer(offsets, "<u8").astype(np.int64)), {})

    return encode
