"""Synthetic shards: readable as any others, as long as asked for, the same every time."""

from pathlib import Path

import numpy as np

from cmbert.data.shards.shard_set import ShardSet
from cmbert.data.synthetic import write_synthetic
from cmbert.tokenizer import load_tokenizer
from tests.own_ids import NUM_SPECIAL_TOKENS

LENGTHS = [5, 1, 300, 64]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_shards_hold_what_was_asked_for_in_the_tokenizers_ids(tmp_path: Path) -> None:
    write_synthetic(tmp_path, 512, LENGTHS)
    tokenizer, shards = load_tokenizer(tmp_path / "tokenizer", vocab_size=512), ShardSet(tmp_path / "shards")
    assert shards.manifest["tokenizer"] == {"fingerprint": tokenizer.fingerprint, "vocab_size": 512}
    documents = [shards.read(number) for number in range(len(LENGTHS))]
    assert [len(tokens) for tokens, _ in documents] == LENGTHS
    tokens = np.concatenate([tokens for tokens, _ in documents])
    assert tokens.min() >= NUM_SPECIAL_TOKENS
    assert NUM_SPECIAL_TOKENS < len(set(tokens.tolist())) <= 512 - NUM_SPECIAL_TOKENS
    assert all(starts[0] for _, starts in documents)
    assert 0.5 < np.concatenate([starts for _, starts in documents]).mean() < 0.7


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        write_synthetic(tmp_path / name, 512, LENGTHS, seed)
    assert files(tmp_path / "one") == files(tmp_path / "again")
    assert files(tmp_path / "one") != files(tmp_path / "other")
