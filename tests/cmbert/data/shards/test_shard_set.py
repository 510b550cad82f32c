"""The shard format: what is written is read back, by us and by Megatron-Core; torn files are refused."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from cmbert.config.schema import DataConfig, MaskConfig, SourceConfig
from cmbert.data.kernels import frame_segments
from cmbert.data.packing import SourceRows, document_chunks, plan_blocks
from cmbert.data.reader import open_reader
from cmbert.data.shards.integrity import hash_blocks
from cmbert.data.shards.layout import token_dtype
from cmbert.data.shards.manifest import read_manifest, write_manifest
from cmbert.data.shards.megatron import read_idx, write_idx
from cmbert.data.shards.shard_set import ShardSet
from cmbert.data.shards.writer import ShardWriter
from cmbert.errors import ShardError
from cmbert.tokenizer import Tokenizer

LENGTHS = [3, 10, 1, 77, 5]


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, list[np.ndarray], list[np.ndarray]]:
    random = np.random.default_rng(0)
    tokens = [random.integers(5, 384, length) for length in LENGTHS]
    starts = [random.random(length) < 0.5 for length in LENGTHS]
    for bits in starts:
        bits[0] = True
    entries = []
    for name, batches in (("00000", [(0, 2), (2, 3)]), ("00001", [(3, 5)])):
        writer = ShardWriter(tmp_path, name, token_dtype(384))
        for first, last in batches:  # several appends: bits must continue inside a byte
            part = slice(first, last)
            writer.append(np.concatenate(tokens[part]), np.array(LENGTHS[part]), np.concatenate(starts[part]))
        entries.append(writer.close())
    write_manifest(tmp_path, {"tokenizer": {"fingerprint": "f", "vocab_size": 384}, "shards": entries})
    return tmp_path, tokens, starts


def test_documents_and_units_come_back(written: tuple[Path, list[np.ndarray], list[np.ndarray]]) -> None:
    directory, tokens, starts = written
    for mmap in (True, False):
        shards = ShardSet(directory, mmap=mmap)
        assert shards.num_documents == len(LENGTHS)
        assert shards.num_tokens == sum(LENGTHS)
        assert shards.document_lengths().tolist() == LENGTHS
        for index, (expected_tokens, expected_starts) in enumerate(zip(tokens, starts, strict=True)):
            found_tokens, found_starts = shards.read(index)
            assert found_tokens.tolist() == expected_tokens.tolist()
            assert found_starts.tolist() == expected_starts.tolist()
    part_tokens, part_starts = ShardSet(directory).read(3, start=13, count=40)
    assert part_tokens.tolist() == tokens[3][13:53].tolist()
    assert part_starts.tolist() == [True, *starts[3][14:53].tolist()]  # a segment always begins a unit
    assert ShardSet(directory).token_counts(384).tolist() == np.bincount(np.concatenate(tokens), minlength=384).tolist()


@pytest.mark.filterwarnings("ignore")
def test_megatron_core_opens_our_shards(written: tuple[Path, list[np.ndarray], list[np.ndarray]]) -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    directory, tokens, _ = written
    theirs = indexed.IndexedDataset(str(directory / "00000"))
    assert theirs.sequence_lengths.tolist() == LENGTHS[:3]
    assert theirs.document_indices.tolist() == [0, 1, 2, 3]
    for index in range(3):
        assert theirs[index].tolist() == tokens[index].tolist()


@pytest.mark.filterwarnings("ignore:Transformer Engine", "ignore::DeprecationWarning")
def test_we_open_megatron_shards_with_one_unit_per_token(tmp_path: Path) -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    torch = pytest.importorskip("torch")
    builder = indexed.IndexedDatasetBuilder(str(tmp_path / "old.bin"), dtype=np.uint16)
    builder.add_item(torch.tensor([7, 8]))
    builder.add_item(torch.tensor([9]))  # a second sentence of the same document
    builder.end_document()
    builder.add_item(torch.tensor([10, 11, 12]))
    builder.end_document()
    builder.finalize(str(tmp_path / "old.idx"))
    with pytest.warns(UserWarning, match="without word units"):
        shards = ShardSet(tmp_path / "old")
    assert shards.document_lengths().tolist() == [3, 3]
    assert shards.read(0)[0].tolist() == [7, 8, 9]
    assert shards.read(1)[1].all()


@pytest.mark.parametrize("suffix", ["bin", "idx", "words"])
def test_torn_or_missing_files_are_refused(written: tuple, suffix: str) -> None:
    directory = written[0]
    path = directory / f"00001.{suffix}"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    with pytest.raises(ShardError, match=rf"00001\.{suffix}.*truncated"):
        ShardSet(directory)
    path.unlink()
    with pytest.raises(ShardError, match=rf"00001\.{suffix}.*missing"):
        ShardSet(directory)


def test_a_directory_without_a_whole_manifest_is_no_shard_set(written: tuple) -> None:
    directory = written[0]
    manifest = directory / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(ShardError, match="not valid JSON"):
        ShardSet(directory)
    manifest.write_text('{"format": "other"}', encoding="utf-8")
    with pytest.raises(ShardError, match="format 'other'"):
        ShardSet(directory)
    manifest.unlink()
    with pytest.raises(ShardError, match="not a shard set"):
        ShardSet(directory)


def vouch_for(directory: Path, name: str, raw: bytes) -> None:
    """Write a file of a set and let the manifest say that it is right."""
    path = directory / name
    path.write_bytes(raw)
    manifest, suffix = read_manifest(directory), path.suffix[1:]
    entry = next(entry for entry in manifest["shards"] if entry["name"] == path.stem)
    whole, blocks = hash_blocks(path)
    entry["bytes"][suffix], entry["blake2b"][suffix] = len(raw), whole
    if suffix in entry["crc32"]:
        entry["crc32"][suffix] = blocks
    write_manifest(directory, manifest)


@pytest.mark.parametrize(
    ("place", "values", "format"),
    [
        (34 + 12 * 3, [0, 2, 1, 3], "q"),  # bounds that fall
        (34 + 12 * 3, [1, 1, 2, 3], "q"),
        (34 + 12 * 3, [0, 1, 2, 4], "q"),
        (34 + 12 * 3, [0, 2**63 - 1, -2, 3], "q"),
        (34 + 12 * 3, [0, 1, 1, 3], "q"),  # sound, of a Megatron pair; ours has one sequence a document
        (34 + 4 * 3, [0, 8, 26], "q"),  # pointers
        (34 + 4 * 3, [-2, 6, 26], "q"),
        (34, [3, 11, 0], "i"),  # another document's token; a document without any
        (34, [-1, 14, 1], "i"),
        (34, [2**31 - 1, 2**31 - 1, 1], "i"),
        (17, [4], "B"),  # ids of four bytes
    ],
)
def test_an_index_that_makes_no_sense_is_refused_though_the_manifest_vouches_for_it(
    written: tuple, place: int, values: list[int], format: str
) -> None:
    directory = written[0]
    raw = bytearray((directory / "00000.idx").read_bytes())
    struct.pack_into(f"<{len(values)}{format}", raw, place, *values)
    vouch_for(directory, "00000.idx", bytes(raw))
    shards = ShardSet(directory)
    for use in (
        lambda: shards.document_lengths(),
        lambda: shards.read(0),
        lambda: shards.check_documents(0, 1),
        lambda: plan_blocks(document_chunks(shards), 32, 8),
    ):
        with pytest.raises(ShardError, match=r"00000\.idx: [^\n]*\Z"):
            use()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("name", "../00000", "is no name of a file"),
        ("name", 7, "shards[0].name: found 7, must be a text"),
        ("name", "00001", "'00001' is listed 2 times"),
        ("documents", 2, "do not fit together"),
        ("documents", 2**63, "shards[0].documents: found"),
        ("documents", -3, "shards[0].documents: found -3"),
        ("tokens", True, "shards[0].tokens: found True"),
        ("tokens", 15, "do not fit together"),
        ("bytes", {"bin": 28}, "shards[0].bytes.idx: missing key"),
        ("blake2b", None, "shards[0].blake2b: found None"),
        ("crc32", {"bin": "AAAA", "words": "AAAA"}, "crc32.bin: not one checksum"),
        ("crc32", {"bin": "", "words": ""}, "crc32.bin: not one checksum"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(written: tuple, key: str, value: object, words: str) -> None:
    directory = written[0]
    manifest = read_manifest(directory)
    manifest["shards"][0][key] = value
    write_manifest(directory, manifest)
    with pytest.raises(ShardError, match=rf"manifest\.json: .*{re.escape(words)}"):
        ShardSet(directory).read(0)


def test_pointers_pass_two_gigabytes(tmp_path: Path) -> None:
    lengths = np.full(3, 2**30, dtype=np.int64)
    write_idx(tmp_path / "big.idx", lengths, np.dtype("<u2"))
    found, starts, _ = read_idx(tmp_path / "big.idx")
    assert found.tolist() == lengths.tolist()
    assert starts.tolist() == [0, 2**30, 2**31]


def test_large_vocabularies_take_four_bytes() -> None:
    assert token_dtype(65_536).itemsize == 2
    assert token_dtype(65_537).itemsize == 4


def test_sentence_ends(tokenizer: Tokenizer) -> None:
    ends = tokenizer.sentence_end_tokens()
    ids = tokenizer.encode("今天天气很好。我们")
    assert [tokenizer.decode([i]) for i in ids if ends[i]] == ["。"]


@pytest.mark.parametrize("suffix", ["bin", "words", "idx"])
@pytest.mark.parametrize("how", ["a flipped bit", "swapped"])
def test_damage_is_found_before_a_token_is_used(
    suffix: str, how: str, tokenizer_directory: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    directory, random, entries = tmp_path / "shards", np.random.default_rng(0), []
    directory.mkdir()
    for name in ("00000", "00001"):
        writer = ShardWriter(directory, name, token_dtype(384))
        starts = random.random(18_000) < 0.7
        starts[::90] = True
        writer.append(random.integers(5, 384, 18_000), np.full(200, 90), starts)
        entries.append(writer.close())
    fingerprint = {"fingerprint": tokenizer.fingerprint, "vocab_size": 384}
    write_manifest(directory, {"tokenizer": fingerprint, "shards": entries})
    first, second = (directory / f"0000{i}.{suffix}" for i in (0, 1))
    raw = bytearray(second.read_bytes())
    if how == "swapped":
        raw = bytearray(first.read_bytes())
        raw[: len(raw) // 3] = second.read_bytes()[: len(raw) // 3]  # the two index files are equal
    raw[-40] ^= 1
    second.write_bytes(raw)
    source = SourceConfig(path=str(directory))
    data = DataConfig(tokenizer=str(tokenizer_directory), sources=(source,), context_tokens=64, shuffle_block_rows=16)

    def read_all() -> None:
        reader = open_reader(data, MaskConfig(), tokenizer, seed=0)
        for row in range(reader.blend.sources[0].num_rows):
            reader.micro_batch([row], 0.15)

    with pytest.raises(ShardError, match=rf"00001\.{suffix}: (bytes 0|its hash)"):
        read_all()


def test_rows_beyond_two_gigabytes(tokenizer_directory: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Sparse files: 2^31 tokens of nothing, then a document."""
    tokens = np.array(tokenizer.encode("今天天气很好。"))
    lengths = np.array([2**30, 2**30, len(tokens)])
    write_idx(tmp_path / "00000.idx", lengths, np.dtype("<u2"))
    with open(tmp_path / "00000.bin", "wb") as file:
        file.seek(2 * 2**31)
        file.write(tokens.astype("<u2").tobytes())
    with open(tmp_path / "00000.words", "wb") as file:
        file.truncate(2**31 // 8 + 1)
    sizes = {suffix: (tmp_path / f"00000.{suffix}").stat().st_size for suffix in ("bin", "idx", "words")}
    entry = {"name": "00000", "documents": 3, "tokens": int(lengths.sum()), "units": 3}
    entry |= {"bytes": sizes, "blake2b": dict.fromkeys(sizes, "")}
    fingerprint = {"fingerprint": tokenizer.fingerprint, "vocab_size": 384}
    write_manifest(tmp_path, {"tokenizer": fingerprint, "shards": [entry]})
    shards = ShardSet(tmp_path)
    assert shards.num_tokens > 2**31
    assert shards.document_tokens(2).tolist() == tokens.tolist()
    assert shards.read(2)[0].tolist() == tokens.tolist()
    _, firsts = shards.locate(np.array([2, 0, 1]))
    assert firsts.tolist() == [2**31, 0, 2**30]
    rows = SourceRows(
        shards,
        context=8192,
        sentence_ends=tokenizer.sentence_end_tokens(),
        shuffle_block_rows=10**6,
        shuffle_blocks=4,
        seed=0,
    )
    assert rows.num_rows > 2**31 // 8192
    places = np.zeros(1, np.int64)
    ids, starts = np.empty(len(tokens) + 2, np.int64), np.empty(len(tokens) + 2, bool)
    stored, bits = shards.shard_arrays(0)
    frame_segments(stored, bits, np.array([2**31]), np.array([len(tokens)]), places, ids, starts, 2, 3)
    assert ids.tolist() == [2, *tokens.tolist(), 3]


@pytest.mark.filterwarnings("ignore")
def test_a_megatron_set_trains_on_single_tokens(
    tokenizer_directory: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    builder = indexed.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for number in range(50):
        builder.add_document(np.array(tokenizer.encode("今天天气很好。" * (number % 7 + 1))), [7 * (number % 7 + 1)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    source = SourceConfig(path=str(tmp_path / "theirs"))
    data = DataConfig(tokenizer=str(tokenizer_directory), sources=(source,), context_tokens=64, shuffle_block_rows=8)
    with pytest.warns(UserWarning, match="without word units: masking single tokens"):
        reader = open_reader(data, MaskConfig(), tokenizer, seed=0)
    rows = range(reader.blend.sources[0].num_rows)
    units = [reader.assemble([row]).unit_lengths(tokenizer.vocabulary.is_ordinary) for row in rows]
    assert sum(sum(lengths[1:]) for lengths in units) == 0  # every unit is one token
    assert sum(len(reader.micro_batch([row], 0.3).targets) for row in rows) > 0
