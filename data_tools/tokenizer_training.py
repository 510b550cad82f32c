"""`train-tokenizer`: lossless byte-level BPE on documents, saved as transformers' AutoTokenizer loads it."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from cmbert.errors import ConfigError, InputError
from cmbert.files import write_json
from cmbert.progress import Progress
from cmbert.tokenizer import CLS_ID, SEP_ID, SPECIAL_TOKENS, TOKENIZER_FILE
from data_tools.defaults import VOCAB_SIZE
from data_tools.document import Document
from data_tools.outputs import building, describe_inputs, is_done
from data_tools.readers import DocumentReader, input_files, whole_files

RECORD_FILE = "training.json"
VOCAB_MULTIPLE = 64  # ours: keeps the embedding's rows aligned for tensor cores and ZeRO shards
SMALLEST_VOCAB_SIZE = 320  # the next multiple of 64 after 256 bytes and the special tokens
MIN_PAIR_COUNT = 2  # ours: a pair seen once is no pattern
MODEL_MAX_LENGTH = 8_192  # tokens, the long stage of the paper
BATCH_DOCUMENTS = 256
MEASURED_CHARACTERS = 2_000_000  # ours: enough for three digits of characters per token

# Written as ranges: \p{Han} takes in 。 and 《 in some regular-expression libraries (PCRE2) and not in others.
HANZI = "々〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# What BPE may merge within; every character matches exactly one alternative. Ours: merges may cross words inside a
# run of Hanzi, but never glue punctuation, letters or digits to Hanzi. No look-ahead: fast encoders lack it.
PATTERN = "|".join(
    (
        rf"[{HANZI}]+",
        rf" ?(?:[^\P{{L}}{HANZI}]\p{{M}}*)+",  # other letters with their marks, and the space before them
        rf"[^\P{{N}}{HANZI}]{{1,3}}",  # digits
        rf"[^\s\p{{L}}\p{{N}}{HANZI}]+",  # punctuation, symbols, emoji with their joiners
        r"[\r\n]+",
        r"[^\S\r\n]+",
    )
)


@dataclass
class TextSample:
    """What passed on its way to the trainer, and a spread of it to measure on."""

    documents: int = 0
    text_bytes: int = 0
    characters: int = 0
    kept: list[str] = field(default_factory=list)
    kept_characters: int = 0

    def count(self, documents: Iterator[Document], reader: DocumentReader) -> Iterator[list[str]]:
        """Yield the texts in batches, counting them and showing progress."""
        progress = Progress("read", reader.total_bytes / 1e6, "MB")
        batch: list[str] = []
        for document in documents:
            self._count(document.text)
            batch.append(document.text)
            if len(batch) == BATCH_DOCUMENTS:
                yield batch
                batch = []
                progress.advance(reader.bytes_read / 1e6 - progress.done)
        yield batch
        progress.close()

    def _count(self, text: str) -> None:
        self.documents += 1
        self.text_bytes += len(text.encode("utf-8"))
        self.characters += len(text)
        if self.kept_characters < MEASURED_CHARACTERS:
            self.kept.append(text)
            self.kept_characters += len(text)


def train_tokenizer(
    inputs: Sequence[str],
    output: Path,
    *,
    vocab_size: int = VOCAB_SIZE,
    text_key: str = "text",
    on_bad_line: str = "fail",
) -> None:
    """Train on all documents of `inputs` and save to the directory `output`, or say that it is there already.

    Raises ConfigError for a vocabulary size that is no multiple of 64 or more than the text can fill, InputError for
    unusable text.
    """
    check_vocab_size(vocab_size)
    files = input_files(inputs)
    settings = {
        "inputs": describe_inputs(files),
        "vocab_size": vocab_size,
        "text_key": text_key,
        "on_bad_line": on_bad_line,
        "pattern": PATTERN,
        "min_pair_count": MIN_PAIR_COUNT,
    }
    if is_done(output, RECORD_FILE, settings):
        print(f"{output}: done already, with the same settings")
        return
    started = time.monotonic()
    reader, sample = DocumentReader(whole_files(files), text_key=text_key, on_bad_line=on_bad_line), TextSample()
    backend = untrained()
    backend.train_from_iterator(sample.count(iter(reader), reader), trainer(vocab_size))
    check_filled(backend, vocab_size, sample)
    backend.post_processor = special_tokens_around()
    per_token = characters_per_token(backend, sample.kept)
    with building(output) as aside:
        backend.save(str(aside / TOKENIZER_FILE))
        write_json(aside / "tokenizer_config.json", tokenizer_config())
        write_json(aside / RECORD_FILE, record(settings, sample, dict(reader.skipped), per_token))
    rate = sample.text_bytes / 1e6 / (time.monotonic() - started)
    counted = f"{vocab_size:,} ids from {sample.documents:,} documents"
    print(f"{output}: {counted}, {rate:.1f} MB/s, {per_token:.2f} characters per token")


def check_vocab_size(vocab_size: int) -> None:
    """Raise ConfigError unless `vocab_size` is a multiple of 64 with room for the bytes and the special tokens."""
    if vocab_size < SMALLEST_VOCAB_SIZE:
        raise ConfigError(f"--vocab-size {vocab_size}: the smallest is {SMALLEST_VOCAB_SIZE}")
    if vocab_size % VOCAB_MULTIPLE:
        below = vocab_size - vocab_size % VOCAB_MULTIPLE
        nearest = f"{below} or {below + VOCAB_MULTIPLE}"
        raise ConfigError(f"--vocab-size {vocab_size}: must be a multiple of {VOCAB_MULTIPLE}; nearest: {nearest}")


def untrained() -> tokenizers.Tokenizer:
    """Return the tokenizer without its merges: NFC, our pattern, bytes; nothing it does loses a character."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def trainer(vocab_size: int) -> trainers.BpeTrainer:
    """Return a trainer that gives the special tokens ids 0 to 4 and every byte a token of its own."""
    return trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_PAIR_COUNT,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )


def special_tokens_around() -> processors.TemplateProcessing:
    """Return `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`."""
    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS_ID), ("[SEP]", SEP_ID)],
    )


def check_filled(backend: tokenizers.Tokenizer, vocab_size: int, sample: TextSample) -> None:
    """Raise InputError when there was no text, ConfigError when it was too little for `vocab_size`."""
    if not sample.characters:
        raise InputError("the input has no document with text")
    found = backend.get_vocab_size()
    if found < vocab_size:
        largest = found - found % VOCAB_MULTIPLE
        remedy = f"the largest that works is {largest}" if largest >= SMALLEST_VOCAB_SIZE else "give it more text"
        counted = f"{sample.text_bytes:,} bytes of text give only {found} ids"
        raise ConfigError(f"--vocab-size {vocab_size}: {counted}; {remedy}")


def characters_per_token(backend: tokenizers.Tokenizer, texts: list[str]) -> float:
    """Return characters per token over `texts`, special tokens not counted."""
    encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
    return sum(map(len, texts)) / sum(map(len, encoded))


def tokenizer_config() -> dict[str, Any]:
    """Return tokenizer_config.json: what AutoTokenizer needs to load tokenizer.json with no custom code."""
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
        "model_max_length": MODEL_MAX_LENGTH,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }


def record(settings: dict, sample: TextSample, skipped: dict[str, int], per_token: float) -> dict[str, Any]:
    """Return training.json: how the tokenizer was made, and what it does on the text it was made from."""
    embedding = f"{settings['vocab_size']:,} x hidden size parameters, shared by the embedding and the MLM head"
    return {
        "settings": settings,
        "documents": sample.documents,
        "text_bytes": sample.text_bytes,
        "characters": sample.characters,
        "skipped_lines": skipped,
        "characters_per_token": round(per_token, 3),
        "characters_per_token_measured_on": f"the first {sample.kept_characters:,} characters of the training text",
        "embedding": embedding,
        "tokenizers_version": tokenizers.__version__,
    }
