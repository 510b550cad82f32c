"""The ledger: every record comes back, a few bytes a segment, rewound with the run, damage found."""

import errno
import os
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmbert.config.schema import DataConfig, MaskConfig, SourceConfig
from cmbert.data.batches import BatchGeometry, data_row
from cmbert.data.ledger import LEDGER_FOLDER, LedgerWriter, Segments, pack_record, read_record
from cmbert.data.reader import StepBatches, open_reader
from cmbert.errors import CheckpointError
from cmbert.tokenizer import Tokenizer
from tests.own_ids import PAD_ID


def make_segments(step: int, count: int = 200) -> Segments:
    random = np.random.default_rng(step)
    documents = np.sort(random.integers(0, 1_600_000_000, count))
    sources = np.sort(random.integers(0, 3, count)).astype(np.uint16)
    starts = np.where(random.random(count) < 0.2, random.integers(0, 100_000, count), 0).astype(np.int32)
    order = np.lexsort((starts, documents, sources))
    return Segments(sources[order], documents[order], starts[order], random.integers(1, 1022, count).astype(np.int32))


def write_steps(run: Path, steps: range, count: int = 200) -> None:
    writer = LedgerWriter(run, steps.start)
    for step in steps:
        writer.write(step, pack_record(step, step, make_segments(step, count)))
    writer.close()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Say whether nothing more fits on the disk: neither bytes nor new files; half a write may still."""
    real_write, real_open, full = os.write, os.open, [False]

    def write(descriptor: int, data: bytes) -> int:
        if full[0] and len(data) < 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_write(descriptor, data[:50] if full[0] else data)

    def open_file(path: str, flags: int, mode: int = 0o777, **more: Any) -> int:
        if full[0] and flags & os.O_CREAT and not os.path.exists(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real_open(path, flags, mode, **more)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "open", open_file)

    def fill(is_full: bool) -> None:
        full[0] = is_full

    return fill


def check(run: Path, step: int) -> None:
    record = read_record(run, step)
    assert (record.step, record.first_row) == (step, step)
    assert all(np.array_equal(a, b) for a, b in zip(record.segments, make_segments(step), strict=True))


def test_every_record_comes_back_over_files(tmp_path: Path) -> None:
    write_steps(tmp_path, range(990, 1010))
    assert sorted(path.name for path in (tmp_path / LEDGER_FOLDER).iterdir()) == ["000000000.bin", "000001000.bin"]
    for step in range(990, 1010):
        check(tmp_path, step)
    with pytest.raises(CheckpointError, match="no record of step 1010"):
        read_record(tmp_path, 1010)


@pytest.mark.parametrize("resumed_at", [990, 995, 1000, 1003, 1010])
def test_a_resume_rewinds(tmp_path: Path, resumed_at: int) -> None:
    write_steps(tmp_path, range(990, 1010))
    torn = tmp_path / LEDGER_FOLDER / "000001000.bin"
    torn.write_bytes(torn.read_bytes() + pack_record(1010, 1010, make_segments(1010))[:-5])  # killed while it wrote
    write_steps(tmp_path, range(resumed_at, 1012))
    write_steps(tmp_path / "unbroken", range(990, 1012))
    for name in ("000000000.bin", "000001000.bin"):
        files = [folder / LEDGER_FOLDER / name for folder in (tmp_path, tmp_path / "unbroken")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_full_disk_where_a_file_ends_loses_nothing(tmp_path: Path, full_disk: Callable[[bool], None]) -> None:
    writer = LedgerWriter(tmp_path, 998)
    for step in range(998, 2003):
        full_disk(step in range(999, 1001) or step in range(1999, 2002))
        writer.write(step, pack_record(step, step, make_segments(step, 5)))
    full_disk(True)
    writer.write(2003, pack_record(2003, 2003, make_segments(2003, 5)))
    with pytest.raises(OSError, match="No space left on device"):
        writer.sync()  # so that no checkpoint of these steps is published
    full_disk(False)
    writer.sync()
    for step in range(998, 2004):
        assert np.array_equal(read_record(tmp_path, step).segments.documents, make_segments(step, 5).documents)
    writer.close()
    write_steps(tmp_path / "unbroken", range(998, 2004), count=5)
    for name in ("000000000.bin", "000001000.bin", "000002000.bin"):
        files = [folder / LEDGER_FOLDER / name for folder in (tmp_path, tmp_path / "unbroken")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_disk_that_stays_full_is_told_at_the_end(tmp_path: Path, full_disk: Callable[[bool], None]) -> None:
    writer = LedgerWriter(tmp_path, 999)
    full_disk(True)
    for step in (999, 1000):
        writer.write(step, pack_record(step, step, make_segments(step)))
    with pytest.raises(OSError, match="No space left on device"):
        writer.close()
    full_disk(False)
    write_steps(tmp_path, range(999, 1002))  # the next life
    for step in (999, 1000, 1001):
        check(tmp_path, step)


def test_zeros_that_a_lost_machine_left_are_no_records(tmp_path: Path) -> None:
    write_steps(tmp_path, range(2))
    path = tmp_path / LEDGER_FOLDER / "000000000.bin"
    path.write_bytes(path.read_bytes() + bytes(45))
    with pytest.raises(CheckpointError, match="no record of step 2"):
        read_record(tmp_path, 2)
    write_steps(tmp_path, range(2, 4))
    for step in range(4):
        check(tmp_path, step)
    path.write_bytes(bytes(45))
    with pytest.raises(CheckpointError, match="no record of step 0"):
        read_record(tmp_path, 0)


def test_more_than_256_sources_keep_their_numbers(tmp_path: Path) -> None:
    segments = make_segments(0, 5)._replace(sources=np.array([0, 255, 256, 257, 1000], np.uint16))
    writer = LedgerWriter(tmp_path, 0)
    writer.write(0, pack_record(0, 0, segments))
    writer.write(1, pack_record(1, 1, make_segments(1)))
    writer.close()
    assert read_record(tmp_path, 0).segments.sources.tolist() == [0, 255, 256, 257, 1000]
    assert read_record(tmp_path, 0).segments.documents.tolist() == segments.documents.tolist()
    check(tmp_path, 1)


def test_rows_of_many_sources_are_told_apart(tokenizer_directory: Path, tokenizer: Tokenizer, shards: Path) -> None:
    sources = tuple(SourceConfig(path=str(shards)) for _ in range(260))
    data = DataConfig(tokenizer=str(tokenizer_directory), sources=sources, context_tokens=64)
    reader = open_reader(data, MaskConfig(), tokenizer, seed=0)
    rows = range(520)
    expected = {reader.blend.address(row).source for row in rows}
    assert len(expected) == 260
    assert set(reader.segments(reader.find(rows)).sources.tolist()) == expected


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    write_steps(tmp_path, range(3))
    path = tmp_path / LEDGER_FOLDER / "000000000.bin"
    raw = bytearray(path.read_bytes())
    raw[-9] ^= 16
    path.write_bytes(raw)
    check(tmp_path, 1)
    with pytest.raises(CheckpointError, match="record of step 2 is damaged"):
        read_record(tmp_path, 2)


def test_what_a_step_saw(tokenizer_directory: Path, tokenizer: Tokenizer, shards: Path, tmp_path: Path) -> None:
    source = SourceConfig(path=str(shards))
    data = DataConfig(tokenizer=str(tokenizer_directory), sources=(source,), context_tokens=64, shuffle_block_rows=32)
    reader = open_reader(data, MaskConfig(), tokenizer, seed=3)
    rate = partial(lambda step: 0.15)

    def steps(rank: int, skipped_rows: tuple[tuple[int, int], ...] = ()) -> StepBatches:
        return StepBatches(
            reader, BatchGeometry(lambda step: range(12 * step, 12 * step + 12), 3, rank, 2, skipped_rows), rate
        )

    facts = steps(0)[5].facts
    assert steps(1)[5].facts.ledger == b""
    writer = LedgerWriter(tmp_path, 5)
    writer.write(5, facts.ledger)
    writer.close()
    segments = read_record(tmp_path, 5).segments
    tokens = [
        reader.blend.sources[0].shards.read(document, start, length)[0].tolist()
        for document, start, length in zip(segments.documents, segments.starts, segments.lengths, strict=True)
    ]
    seen = [batch for rank in (0, 1) for batch in steps(rank)[5].micro_batches]
    found = []
    for batch in seen:
        ids = batch.input_ids.clone()
        ids[batch.masked_positions] = batch.targets
        bounds = batch.cu_seqlens.tolist()
        found += [ids[a + 1 : b - 1].tolist() for a, b in pairwise(bounds) if ids[a] != PAD_ID]
    assert sorted(found) == sorted(tokens)
    assert facts.source_tokens == [sum(map(len, tokens))]
    assert sum(facts.unit_lengths) > 0
    later = steps(0, ((24, 48), (72, 84)))
    assert [data_row(12 * step, later.geometry.skipped_rows) // 12 for step in range(6)] == [0, 1, 4, 5, 7, 8]
    assert later[3].facts.first_row == 60
    assert later[3].facts.source_tokens == facts.source_tokens


def test_bytes_per_segment() -> None:
    for count in (17_000, 1_000):  # a step of the large recipe, a small one
        assert len(pack_record(0, 0, make_segments(0, count))) / count < 8


def test_records_lost_to_damage_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_steps(tmp_path, range(6))
    path = tmp_path / LEDGER_FOLDER / "000000000.bin"
    LedgerWriter(tmp_path, 6).close()
    assert not caplog.records
    raw = bytearray(path.read_bytes())
    place = raw.index(pack_record(3, 3, make_segments(3)))
    raw[place + 20 : place + 24] = b"\xff" * 4  # the length that its header names
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"000000000\.bin: no record of step 4"):
        read_record(tmp_path, 4)
    LedgerWriter(tmp_path, 6).close()
    assert [record.message for record in caplog.records] == [f"{path}: damaged: its records of steps 3 to 5 are lost"]


def test_a_header_that_does_not_fit_its_record_is_damage(tmp_path: Path) -> None:
    write_steps(tmp_path, range(2))
    path = tmp_path / LEDGER_FOLDER / "000000000.bin"
    raw = bytearray(path.read_bytes())
    raw[16:20] = (2**31).to_bytes(4, "little")  # segments: nothing is made for as many
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"000000000\.bin: the header of step 0's record is damaged"):
        read_record(tmp_path, 0)
    assert read_record(tmp_path, 1).step == 1
