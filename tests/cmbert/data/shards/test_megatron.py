"""Megatron's own file pairs: documents as their index means them, and nothing trained on that is not theirs."""

import os
import pickle
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmbert.config.schema import DataConfig, MaskConfig, SourceConfig
from cmbert.data.reader import RowReader, open_reader
from cmbert.data.shards import integrity, megatron
from cmbert.data.shards.integrity import Crew, Proof, prove_file
from cmbert.data.shards.shard_set import ShardSet
from cmbert.errors import ShardError
from cmbert.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*without word units")


def write_pair(prefix: Path, sequences: list[list[int]], bounds: list[int], dtype: str = "<u2") -> None:
    """Write a pair from the format's description alone. bounds: where documents begin and end among `sequences`."""
    prefix.with_name(f"{prefix.name}.bin").write_bytes(b"".join(np.array(s, dtype).tobytes() for s in sequences))
    size = np.dtype(dtype).itemsize
    raw = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, {"<u2": 8, "<i4": 4}[dtype], len(sequences), len(bounds))
    raw += b"".join(struct.pack("<i", len(s)) for s in sequences)
    place = 0
    for sequence in sequences:
        raw += struct.pack("<q", place)
        place += size * len(sequence)
    prefix.with_name(f"{prefix.name}.idx").write_bytes(raw + b"".join(struct.pack("<q", b) for b in bounds))


def read_naively(prefix: Path) -> list[list[int]]:
    """Read the documents of a pair one number at a time; those without tokens are left out."""
    raw, tokens = (prefix.with_name(f"{prefix.name}.{suffix}").read_bytes() for suffix in ("idx", "bin"))
    code, num_sequences, num_bounds = struct.unpack_from("<BQQ", raw, 17)
    letter, size = {8: ("H", 2), 4: ("i", 4)}[code]
    documents = []
    for document in range(num_bounds - 1):
        first, last = (struct.unpack_from("<q", raw, 34 + 12 * num_sequences + 8 * (document + i))[0] for i in (0, 1))
        ids: list[int] = []
        for sequence in range(first, last):
            length = struct.unpack_from("<i", raw, 34 + 4 * sequence)[0]
            pointer = struct.unpack_from("<q", raw, 34 + 4 * num_sequences + 8 * sequence)[0]
            ids += struct.unpack_from(f"<{length}{letter}", tokens, pointer)
        documents += [ids] if ids else []
    assert size
    return documents


def change(path: Path, place: int, value: bytes) -> None:
    """Overwrite bytes of a file, which keeps its size and its time of change."""
    times = path.stat()
    raw = bytearray(path.read_bytes())
    raw[place : place + len(value)] = value
    path.write_bytes(raw)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def open_rows(prefix: Path, tokenizer: Tokenizer, folder: Path | None = None) -> RowReader:
    data = DataConfig(
        tokenizer=str(tokenizer.directory),
        sources=(SourceConfig(path=str(prefix)),),
        context_tokens=32,
        shuffle_block_rows=8,
    )
    return open_reader(data, MaskConfig(), tokenizer, seed=0, plan_folder=folder)


@pytest.mark.parametrize("block_documents", [2, megatron.IDX_BLOCK_DOCUMENTS])
def test_documents_are_those_of_a_naive_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_documents: int
) -> None:
    monkeypatch.setattr(megatron, "IDX_BLOCK_DOCUMENTS", block_documents)
    random, seen_look_alikes, seen_plain = np.random.default_rng(0), 0, 0
    for trial in range(300):
        num_sequences = int(random.integers(0, 9))
        lengths = random.integers(0, 4, num_sequences) if trial % 3 else random.integers(1, 4, num_sequences)
        sequences = [random.integers(5, 384, length).tolist() for length in lengths]
        if trial % 3 == 0:
            bounds = list(range(num_sequences + 1))
        else:
            num_inner = num_sequences - 1 if trial % 3 == 1 else int(random.integers(0, 12))
            bounds = [0, *sorted(random.integers(0, num_sequences + 1, max(num_inner, 0)).tolist()), num_sequences]
        seen_plain += bounds == list(range(num_sequences + 1))
        seen_look_alikes += len(bounds) == num_sequences + 1 and bounds != list(range(num_sequences + 1))
        prefix = tmp_path / f"set{trial}"
        write_pair(prefix, sequences, bounds, "<i4" if trial % 2 else "<u2")
        expected, shards = read_naively(prefix), ShardSet(prefix)
        found = [shards.read(document)[0].tolist() for document in range(shards.num_documents)]
        assert found == expected, (sequences, bounds)
        assert shards.num_tokens == sum(map(len, expected))
        assert shards.document_lengths().tolist() == list(map(len, expected))
        again = pickle.loads(pickle.dumps(shards))  # as a loader process gets it
        assert [again.document_tokens(document).tolist() for document in range(again.num_documents)] == expected
    assert seen_look_alikes > 50
    assert seen_plain > 50


@pytest.mark.parametrize("block_documents", [1, 2, megatron.IDX_BLOCK_DOCUMENTS])
def test_a_pair_that_does_not_fit_together_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_documents: int
) -> None:
    monkeypatch.setattr(megatron, "IDX_BLOCK_DOCUMENTS", block_documents)
    sequences, bounds = [[5, 6, 7], [8], [9, 10]], [0, 2, 3]
    places = {"length": 34, "pointer": 34 + 12, "bound": 34 + 36}
    for name, suffix, place, value, words in [
        ("negative", "idx", places["length"], struct.pack("<i", -3), "negative"),
        ("longer", "idx", places["length"], struct.pack("<i", 4), "sequence 1 begins at byte 6"),
        ("elsewhere", "idx", places["pointer"] + 8, struct.pack("<q", 2**40), "sequence 1 begins at byte"),
        ("before", "idx", places["pointer"], struct.pack("<q", -2), "sequence 0 begins at byte -2"),
        ("late", "idx", places["bound"], struct.pack("<q", 1), "document bounds"),
        ("falling", "idx", places["bound"] + 8, struct.pack("<q", 4), "document bounds"),
        ("unfinished", "idx", places["bound"] + 16, struct.pack("<q", 2), "document bounds"),
        ("huge", "idx", 18, struct.pack("<Q", 2**61), "its header says"),
    ]:
        write_pair(tmp_path / name, sequences, bounds)
        change(tmp_path / f"{name}.{suffix}", place, value)
        with pytest.raises(ShardError, match=rf"{name}\.idx.*{words}"):
            ShardSet(tmp_path / name)
    write_pair(tmp_path / "none", sequences, [])
    with pytest.raises(ShardError, match="document bounds"):
        ShardSet(tmp_path / "none")


@pytest.mark.parametrize("size", [0, 1, 6, 11, 13, 14])
def test_a_bin_of_another_size_is_refused(tmp_path: Path, size: int) -> None:
    write_pair(tmp_path / "torn", [[5, 6, 7], [8], [9, 10]], [0, 2, 3])
    path = tmp_path / "torn.bin"
    path.write_bytes((path.read_bytes() + bytes(9))[:size])
    with pytest.raises(ShardError, match=rf"torn\.bin: {size} bytes, its index says 12"):
        ShardSet(tmp_path / "torn")
    path.unlink()
    with pytest.raises(ShardError, match=r"torn\.bin: missing"):
        ShardSet(tmp_path / "torn")


@pytest.mark.parametrize(("dtype", "foreign"), [("<u2", 65_535), ("<u2", 384), ("<i4", -1), ("<i4", 2**31 - 1)])
def test_an_id_that_the_tokenizer_has_not_is_found_before_the_first_row(
    tmp_path: Path, tokenizer: Tokenizer, dtype: str, foreign: int
) -> None:
    random = np.random.default_rng(0)
    sequences = [random.integers(5, 384, 9).tolist() for _ in range(200)]
    write_pair(tmp_path / "sound", sequences, list(range(201)), dtype)
    open_rows(tmp_path / "sound", tokenizer).micro_batch([0], 0.3)
    sequences[150][3] = foreign
    write_pair(tmp_path / "foreign", sequences, list(range(201)), dtype)
    with pytest.raises(ShardError, match=rf"foreign\.bin: .*{foreign}.*384"):
        open_rows(tmp_path / "foreign", tokenizer)


def test_the_fingerprint_covers_the_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    sequences, bounds = [[5, 6, 7], [8], [9, 10]], [0, 2, 3]
    write_pair(tmp_path / "one", sequences, bounds)
    write_pair(tmp_path / "same", sequences, bounds)
    write_pair(tmp_path / "other", [[5, 6, 7], [8], [9, 11]], bounds)
    write_pair(tmp_path / "documents", sequences, [0, 1, 3])
    one, same, other, documents = (
        open_rows(tmp_path / name, tokenizer).blend.sources[0].shards.fingerprint
        for name in ("one", "same", "other", "documents")
    )
    assert one == same
    assert len({one, other, documents}) == 3


def test_all_tokens_are_read_once_for_all_lives_of_a_run(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Kept is what was found, not that something was: foreign ids stay foreign, and what is changed later is found."""
    random, folder = np.random.default_rng(0), tmp_path / "plan"
    sequences = [random.integers(5, 384, 30).tolist() for _ in range(100)]
    write_pair(tmp_path / "set", sequences, list(range(101)))
    first = open_rows(tmp_path / "set", tokenizer, folder)
    for source in first.blend.sources:
        source.shards.keep_proof(folder)
    change(tmp_path / "set.bin", 50, b"\xff\xff")
    second = open_rows(tmp_path / "set", tokenizer, folder)  # would raise if it read the tokens again
    assert second.blend.sources[0].shards.fingerprint == first.blend.sources[0].shards.fingerprint
    with pytest.raises(ShardError, match=r"set\.bin: bytes 0 "):
        second.micro_batch(range(second.blend.sources[0].num_rows), 0.3)
    os.utime(tmp_path / "set.bin", ns=(1, 1))
    with pytest.raises(ShardError, match=r"set\.bin: .*65535"):
        open_rows(tmp_path / "set", tokenizer, folder)


def test_counting_ids_refuses_foreign_ones(tmp_path: Path) -> None:
    write_pair(tmp_path / "set", [[5, 6, 400]], [0, 1])
    with pytest.raises(ShardError, match=r"set: .*400.*384"):
        ShardSet(tmp_path / "set").token_counts(384)
    assert ShardSet(tmp_path / "set").token_counts(401).sum() == 3


def prove_together(path: Path, dtype: str, num_bytes: int, size: int) -> list[Proof | Exception]:
    """Let threads stand for the ranks of a crew; return what each found or raised."""
    board: list[Any] = [None] * size
    barrier = threading.Barrier(size, timeout=60)

    def gather(rank: int, value: Any) -> list[Any]:
        board[rank] = value
        barrier.wait()
        return list(board)

    def prove(rank: int) -> Proof | Exception:
        try:
            return prove_file(path, np.dtype(dtype), num_bytes, Crew(rank, size, lambda value: gather(rank, value)))
        except (OSError, ShardError) as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(prove, range(size)))


@pytest.mark.parametrize("dtype", ["<u2", "<i4"])
@pytest.mark.parametrize("num_ids", [0, 1, 511, 512, 10_007])
def test_ranks_find_together_what_one_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, num_ids: int
) -> None:
    monkeypatch.setattr(integrity, "BLOCK_BYTES", 1024)
    ids = np.random.default_rng(0).integers(0 if dtype == "<u2" else -9, 60_000, num_ids).astype(dtype)
    raw, path = ids.tobytes(), tmp_path / "set.bin"
    path.write_bytes(raw)
    expected = [zlib.crc32(raw[first : first + 1024]) for first in range(0, len(raw), 1024)]
    for size in (1, 3, 16):
        for found in prove_together(path, dtype, len(raw), size):
            assert isinstance(found, Proof)
            assert found.checksums.tolist() == expected
            assert (found.smallest, found.largest) == (min([0, *ids.tolist()]), max([-1, *ids.tolist()]))
    if num_ids:
        path.write_bytes(raw[:-1])  # cut short meanwhile: one rank sees it, all end
        assert all(isinstance(found, ShardError) for found in prove_together(path, dtype, len(raw), 3))


def test_ranks_agree_on_a_proof_or_read_again(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """One rank that does not see what the folder keeps (a slow file system) lets all read; none waits for another."""
    write_pair(tmp_path / "set", [[5, 6, 7]] * 100, list(range(101)))
    kept = ShardSet(tmp_path / "set")
    kept.prove()
    kept.keep_proof(tmp_path / "plan")
    for folders in (["plan"] * 3, ["plan", "none", "plan"], ["none"] * 3):
        said: list[Any] = []
        board: list[Any] = [None] * 3
        barrier = threading.Barrier(3, timeout=60)

        def gather(rank: int, value: Any, board: list[Any] = board, barrier: threading.Barrier = barrier) -> list[Any]:
            board[rank] = value
            barrier.wait()
            found = list(board)
            barrier.wait()
            return found

        def prove(rank: int, folders: list[str] = folders, gather: Any = gather, said: list[Any] = said) -> str:
            shards = ShardSet(tmp_path / "set")

            def count(value: Any) -> list[Any]:
                said.append(value)
                return gather(rank, value)

            shards.prove(tmp_path / folders[rank], Crew(rank, 3, count))
            return shards.fingerprint

        with ThreadPoolExecutor(3) as pool:
            assert set(pool.map(prove, range(3))) == {kept.fingerprint}
        assert len(said) == (3 if set(folders) == {"plan"} else 6)  # the second time it is what each has read
