"""Shards and a tokenizer without text, for runs that measure the machine and not the model. Torch-free."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tokenizers

from cmbert.data.shards.layout import token_dtype
from cmbert.data.shards.manifest import write_manifest
from cmbert.data.shards.writer import ShardWriter
from cmbert.tokenizer import TOKENIZER_FILE, load_tokenizer
from cmbert.vocabulary import SPECIAL_TOKENS

FIRST_CHARACTER = 0x4E00  # of CJK Unified Ideographs: token i is the i-th character from there
UNIT_START_SHARE = 0.6  # of tokens that begin a word (ours; about 1.7 tokens a word)


def write_synthetic(folder: Path, vocab_size: int, lengths: Iterable[int], seed: int = 0) -> None:
    """Write folder/tokenizer, of made-up tokens, and folder/shards, random documents of `lengths` tokens."""
    vocabulary = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    vocabulary |= {chr(FIRST_CHARACTER + index): index for index in range(len(SPECIAL_TOKENS), vocab_size)}
    directory, shards = folder / "tokenizer", folder / "shards"
    directory.mkdir(parents=True)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.save(str(directory / TOKENIZER_FILE))
    shards.mkdir()
    random = np.random.default_rng(seed)
    writer = ShardWriter(shards, "00000", token_dtype(vocab_size))
    for length in lengths:
        starts = random.random(length) < UNIT_START_SHARE
        starts[0] = True
        writer.append(random.integers(len(SPECIAL_TOKENS), vocab_size, length), np.array([length]), starts)
    fingerprint = load_tokenizer(directory, vocab_size=vocab_size).fingerprint
    entry = {"fingerprint": fingerprint, "vocab_size": vocab_size}
    write_manifest(shards, {"tokenizer": entry, "shards": [writer.close()]})
