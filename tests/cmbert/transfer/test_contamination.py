"""The record of what a model was trained on: written, read, merged, and asked about a test's texts."""

import hashlib

import numpy as np
import pytest

from cmbert.errors import CheckpointError
from cmbert.transfer.contamination import (
    DATA_FILE,
    SENTENCES_FILE,
    TrainingFile,
    merge_training_data,
    read_training_data,
    sentence_hashes,
    share_seen,
    write_training_data,
)

FILE = TrainingFile("train.json", "simclue", 3, "ab")


def test_hashes_are_sorted_unique_and_of_stripped_text():
    expected = sorted({int.from_bytes(hashlib.blake2b(t.encode(), digest_size=8).digest(), "little") for t in "甲乙"})
    found = sentence_hashes(["甲", " 甲\n", "乙"])
    assert found.dtype == np.uint64
    assert found.tolist() == expected
    assert sentence_hashes([]).shape == (0,)


def test_share_seen(tmp_path):
    assert share_seen(tmp_path, ["甲"]) == 0.0
    assert read_training_data(tmp_path) == []
    write_training_data(tmp_path, [FILE], sentence_hashes(["甲", "乙"]))
    assert read_training_data(tmp_path) == [FILE]
    assert share_seen(tmp_path, ["甲 ", "丙", "丁", "乙"]) == 0.5
    assert share_seen(tmp_path, []) == 0.0
    assert sorted(path.name for path in tmp_path.iterdir()) == [DATA_FILE, SENTENCES_FILE]


@pytest.mark.parametrize(("name", "content"), [(DATA_FILE, b"[{}]"), (DATA_FILE, b"?"), (SENTENCES_FILE, b"x")])
def test_a_damaged_record_is_refused(tmp_path, name, content):
    write_training_data(tmp_path, [FILE], sentence_hashes(["甲"]))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="train the model again"):
        _ = read_training_data(tmp_path), share_seen(tmp_path, ["甲"])


def test_a_record_without_hashes_is_refused(tmp_path):
    write_training_data(tmp_path, [FILE], sentence_hashes(["甲"]))
    (tmp_path / SENTENCES_FILE).unlink()
    with pytest.raises(CheckpointError, match="missing or damaged"):
        share_seen(tmp_path, ["甲"])


def test_merging_keeps_the_larger_count():
    more, other = TrainingFile("train.json", "simclue", 5, "ab"), TrainingFile("train.json", "simclue", 1, "cd")
    assert merge_training_data([FILE, other], [more]) == [more, other]
