"""Pairs as Megatron-Core's own builder makes them, and what it may make of them that we do not read."""

import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmbert.data.shards.shard_set import ShardSet
from cmbert.data.sources import open_shards
from cmbert.errors import ShardError
from cmbert.tokenizer import Tokenizer
from data_tools.preprocessing.inspection import describe
from data_tools.preprocessing.merge import merge
from data_tools.preprocessing.verify import find_faults

pytestmark = pytest.mark.filterwarnings("ignore")


def build(prefix: Path, documents: Sequence[Sequence[Sequence[int]]], dtype: Any = np.uint16, **how: Any) -> Path:
    """Build a pair of documents, each of some sequences of ids."""
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    torch = pytest.importorskip("torch")
    builder = indexed.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype, **how)
    for document in documents:
        for sequence in document:
            builder.add_item(torch.tensor(sequence, dtype=torch.int64))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    return prefix


def set_bounds(prefix: Path, bounds: Sequence[int]) -> None:
    """Write other document bounds into an index."""
    path = prefix.with_name(f"{prefix.name}.idx")
    raw = path.read_bytes()
    (sequences,) = struct.unpack_from("<Q", raw, 18)
    raw = raw[:26] + struct.pack("<Q", len(bounds)) + raw[34 : 34 + 12 * sequences]
    path.write_bytes(raw + np.array(bounds, "<i8").tobytes())


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@pytest.mark.parametrize(
    ("documents", "lengths"),
    [
        ([[[7, 8, 9]], [[]], [[10, 11, 12, 13]]], [3, 4]),
        ([[[7, 8, 9]], [], [[10, 11, 12, 13]]], [3, 4]),  # a document of no sequence at all
        ([[[7, 8, 9]], [[10, 11, 12, 13]], [[]]], [3, 4]),
        ([[[7, 8, 9]], [[10, 11, 12, 13]], []], [3, 4]),
        ([[[]], [[7, 8, 9]]], [3]),
        ([[], [[7, 8, 9]]], [3]),
        ([[[7], [8, 9]], [[10, 11], [], [12, 13]]], [3, 4]),
        ([[[]], [[]]], []),
        ([], []),
    ],
)
def test_documents_without_tokens_are_none(
    tmp_path: Path, documents: list[list[list[int]]], lengths: list[int], dtype: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cmbert")
    shards = ShardSet(build(tmp_path / "pair", documents, dtype))
    empty = len(documents) - len(lengths)
    said = f"{empty} of its {len(documents)} documents have no tokens and are left out"
    assert [said in record.message for record in caplog.records] == [True] * (empty > 0)
    assert shards.document_lengths().tolist() == lengths
    assert [len(shards.read(number)[0]) for number in range(shards.num_documents)] == lengths
    found = [token for number in range(shards.num_documents) for token in shards.document_tokens(number).tolist()]
    assert found == [token for document in documents for sequence in document for token in sequence]


def test_a_pair_without_tokens_is_no_source(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ShardError, match="holds no tokens"):
        open_shards(build(tmp_path / "pair", [[[]], []]), tokenizer)


@pytest.mark.parametrize(
    "bounds",
    [
        [],
        [0],
        [0, 1, 2],  # ends before the last sequence
        [0, 1, 2, 4],
        [1, 2, 3],
        [-1, 1, 3],
        [0, 2, 1, 3],
        [0, 2**63 - 1, -2, 3],  # whose differences, in 64 bits, are all positive
        [0, -(2**63), 3],
        [3, 2, 1, 0],
        [0, 3, 2**40],
    ],
)
def test_bounds_that_make_no_sense_are_one_line(tmp_path: Path, bounds: list[int]) -> None:
    prefix = build(tmp_path / "pair", [[[7, 8, 9]], [[5]], [[10, 11, 12, 13]]])
    set_bounds(prefix, bounds)
    with pytest.raises(ShardError, match=r"pair\.idx: its document bounds do not rise from 0 to its 3 sequences"):
        ShardSet(prefix)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int64, np.float32, np.float64])
def test_ids_of_another_type_are_named(tmp_path: Path, dtype: Any) -> None:
    prefix = build(tmp_path / "pair", [[[7, 8, 9]], [[10, 11]]], dtype)
    with pytest.raises(ShardError, match=rf"pair\.idx: ids of {np.dtype(dtype).name}; uint16 and int32 are read"):
        ShardSet(prefix)


def test_a_multimodal_pair_is_named(tmp_path: Path) -> None:
    prefix = build(tmp_path / "pair", [[[7, 8, 9]], [[10, 11]]], multimodal=True)
    with pytest.raises(ShardError, match=r"pair\.idx: a multimodal index"):
        ShardSet(prefix)


def test_other_commands_name_what_a_pair_is_not(tmp_path: Path) -> None:
    prefix = build(tmp_path / "pair", [[[7, 8, 9]], [[10, 11]]])
    for use in (lambda: describe(prefix), lambda: merge([prefix], tmp_path / "merged")):
        with pytest.raises(ShardError, match="pair"):
            use()
    assert [str(prefix) in fault for fault in find_faults(prefix)] == [True]
    assert not list(tmp_path.glob("*merged*"))
    assert re.fullmatch(r"pair\.(bin|idx)", sorted(path.name for path in tmp_path.iterdir())[0])
