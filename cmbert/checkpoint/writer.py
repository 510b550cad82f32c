"""Checkpoints written while training goes on: the state is copied, a thread writes and hashes it, all ranks agree.

`begin` copies this rank's ZeRO state into host memory and returns; `finish` makes the whole appear in one rename, or,
if a rank could not write, removes what is there and counts the failure. Nobody else's files are touched: before each
step that changes something, rank 0 looks whether the run directory is still its own (lease.py).
"""

import logging
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
import torch.distributed

from cmbert.checkpoint.files import (
    CHECKPOINTS,
    LEFT_SUFFIX,
    MANIFEST_FILE,
    FileEntry,
    aside_of,
    describe_file,
    name_latest,
    quarantine,
)
from cmbert.checkpoint.host_copy import HostCopy
from cmbert.checkpoint.retention import Retention, prune
from cmbert.checkpoint.state import STATE_FILE, TrainState
from cmbert.cluster.distributed import gather_from_ranks, on_first_rank
from cmbert.errors import CheckpointError, TransientError, describe, may_pass
from cmbert.files.folders import flush_directory, make_empty
from cmbert.files.lease import Lease
from cmbert.files.operations import doing, new_digest, rename
from cmbert.files.whole import write_json
from cmbert.zero.engine import save_engine

logger = logging.getLogger(__name__)


class SaveReport(NamedTuple):
    """What became of a checkpoint, the same on every rank."""

    step: int
    path: Path
    error: str | None
    """Why it was not written; None when it is there."""
    may_pass: bool
    """Whether all of that may be gone at the next try."""
    untidy: str | None
    """What could not be done once it was there: to name it or to remove what need not stay."""
    copy_seconds: float
    """How long training stood still for it: the copy, and the wait for an earlier one."""
    write_seconds: float
    """How long the files took, training going on."""
    num_bytes: int


class _HashingFile:
    """What torch.save writes to: a file whose hash is known when it is written, without reading it again."""

    def __init__(self, file: BinaryIO):
        self.file, self.digest, self.num_bytes = file, new_digest(), 0
        self.error: OSError | None = None

    def write(self, block: bytes) -> int:
        self.digest.update(block)
        self.num_bytes += len(block)
        try:
            return self.file.write(block)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


class CheckpointWriter:
    """Writes the checkpoints of one run, one at a time. Every rank has one and calls its methods alike."""

    def __init__(self, lease: Lease, engine: Any, retention: Retention, max_failures: int):
        self.lease, self.root, self.engine = lease, lease.run / CHECKPOINTS, engine
        self.retention, self.max_failures = retention, max_failures
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.host = HostCopy(engine.device)
        self.state: TrainState | None = None
        """Of the checkpoint on its way; None when there is none."""
        self.num_failures = 0
        """In a row."""

    def begin(self, state: TrainState, prepare: Callable[[], None]) -> None:
        """Copy the engine's state and let the thread write it. None may be on its way. Raises LeaseLostError.

        prepare: what rank 0 must have on disk before there may be a checkpoint; may raise OSError.
        """
        assert self.state is None
        started = time.perf_counter()
        self.state, self.final = state, self.root / f"step_{state.step:09d}"
        self.aside = aside_of(self.final, self.lease.number)
        tables: list[tuple[str, Any]] = []
        self.begin_error = on_first_rank(lambda: self._make_directory(prepare))
        if self.begin_error is None:
            save_engine(self.engine, self.root, self.aside.name, lambda table, path: tables.append((path, table)))
        copies = self.host.take(tables)
        self.copy_seconds = time.perf_counter() - started
        self.written: Future = self.thread.submit(_write_all, copies, self.aside, self.host)

    def hold_weights(self) -> None:
        """Called before the optimizer moves the weights: on a GPU they may still be on their way to the host."""
        self.host.hold()

    def _make_directory(self, prepare: Callable[[], None]) -> None:
        self.lease.check()
        prepare()
        make_empty(self.aside)

    def is_writing(self) -> bool:
        """Return whether this rank's thread still writes."""
        return self.state is not None and not self.written.done()

    def finish(self) -> SaveReport:
        """Wait for the files of all ranks and publish them.

        Raises LeaseLostError, and CheckpointError or TransientError after max_failures + 1 in a row.
        """
        assert self.state is not None
        waited = time.perf_counter()
        files, seconds, error = self._result()
        waited = time.perf_counter() - waited
        results = gather_from_ranks((files, seconds, error))
        problems = {f"rank {rank}: {describe(found)}": found for rank, (_, _, found) in enumerate(results) if found}
        manifest = {name: entry for found, _, _ in results for name, entry in found.items()}
        if unpublished := on_first_rank(lambda: self._publish(manifest, bool(problems))):
            problems = {describe(unpublished): unpublished}
        untidy = None if problems else on_first_rank(self._tidy)
        self.num_failures = self.num_failures + 1 if problems else 0
        report = SaveReport(
            self.state.step,
            self.final,
            "; ".join(problems) or None,
            all(map(may_pass, problems.values())),
            describe(untidy) if untidy else None,
            self.copy_seconds + waited,
            max(spent for _, spent, _ in results),
            sum(entry["bytes"] for entry in manifest.values()),
        )
        self.state = None
        if self.num_failures > self.max_failures:
            raise (TransientError if report.may_pass else CheckpointError)(
                f"{self.root}: {self.num_failures} checkpoints in a row could not be written ({report.error}); "
                f"{'this may pass' if report.may_pass else 'make room there'}, then run the same command again: it "
                "continues from the newest that is whole"
            )
        return report

    def _result(self) -> tuple[dict[str, dict], float, OSError | None]:
        """Return this rank's files, the seconds they took, and what went wrong with the disk."""
        error = self.written.exception()  # waits
        if error is None:
            return *self.written.result(), self.begin_error
        if not isinstance(error, OSError):
            raise error
        return {}, 0.0, error

    def _publish(self, manifest: dict[str, FileEntry], is_broken: bool) -> None:
        """Let the checkpoint appear, or remove its files where it is broken."""
        assert self.state is not None
        self.lease.check()
        if is_broken:
            shutil.rmtree(self.aside, ignore_errors=True)
            return
        try:
            write_json(self.aside / STATE_FILE, asdict(self.state))
            manifest[STATE_FILE] = describe_file(self.aside / STATE_FILE)
            write_json(self.aside / MANIFEST_FILE, dict(sorted(manifest.items())))
            flush_directory(self.aside)  # which takes long
            self.lease.check()
            if self.final.exists():  # half removed by an older version, or put there by hand
                quarantine(self.final, LEFT_SUFFIX)
            rename(self.aside, self.final)
        except OSError:
            shutil.rmtree(self.aside, ignore_errors=True)
            raise

    def _tidy(self) -> None:
        """Name the new checkpoint, and remove what need not stay."""
        assert self.state is not None
        self.lease.check()
        name_latest(self.final)
        self.lease.check()
        prune(self.root, self.retention, self.state.step, self.lease.number)

    def close(self) -> None:
        """Wait for the thread. What it has written without `finish` is no checkpoint."""
        self.thread.shutdown()


def _write_all(copies: list[tuple[str, Any]], directory: Path, host: HostCopy) -> tuple[dict[str, dict], float]:
    """Write each table to its path, on disk when this returns; return sizes and hashes by name, and the seconds."""
    started = time.perf_counter()
    host.wait()
    files = {}
    for path, table in copies:
        with doing("open", path):
            file = open(path, "wb")
        with doing("write", path), file:
            hashing = _HashingFile(file)
            _save(table, hashing)
            file.flush()
            with doing("fsync", path):
                os.fsync(file.fileno())
        files[str(Path(path).relative_to(directory))] = {
            "bytes": hashing.num_bytes,
            "blake2b": hashing.digest.hexdigest(),
        }
    return files, time.perf_counter() - started


def _save(table: Any, file: _HashingFile) -> None:
    try:
        torch.save(table, file)  # type: ignore[arg-type]
    except RuntimeError:  # what torch's zip writer makes of the error below it
        if file.error is None:
            raise
        raise file.error from None
