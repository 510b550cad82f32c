"""Checkpoints written while training goes on: the state is copied, a thread writes and hashes it, all ranks agree.

`begin` copies this rank's ZeRO state into host memory and returns; `finish` makes the whole appear in one rename, or,
if a rank could not write, removes what is there and counts the failure. Nobody else's files are touched.
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

from cmbert.errors import CheckpointError
from cmbert.files import aside_directory, aside_path, new_digest, publish_directory, write_json
from cmbert.train.checkpoint import (
    CHECKPOINTS,
    MANIFEST_FILE,
    STATE_FILE,
    Retention,
    TrainState,
    describe_file,
    name_latest,
    prune,
)
from cmbert.train.distributed import gather_from_ranks, on_first_rank
from cmbert.train.engine import save_engine
from cmbert.train.host_copy import HostCopy

logger = logging.getLogger(__name__)


class SaveReport(NamedTuple):
    """What became of a checkpoint, the same on every rank."""

    step: int
    path: Path
    error: str | None
    """Why it was not written; None when it is there."""
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

    def __init__(self, run: Path, engine: Any, retention: Retention, max_failures: int):
        self.root, self.engine, self.retention, self.max_failures = run / CHECKPOINTS, engine, retention, max_failures
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.host = HostCopy(engine.device)
        self.state: TrainState | None = None
        """Of the checkpoint on its way; None when there is none."""
        self.num_failures = 0
        """In a row."""

    def begin(self, state: TrainState, prepare: Callable[[], None]) -> None:
        """Copy the engine's state and let the thread write it. None may be on its way.

        prepare: what rank 0 must have on disk before there may be a checkpoint; may raise OSError.
        """
        assert self.state is None
        started = time.perf_counter()
        self.state, self.final = state, self.root / f"step_{state.step:09d}"
        self.aside = aside_path(self.final)
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
        prepare()
        aside_directory(self.final)

    def is_writing(self) -> bool:
        """Return whether this rank's thread still writes."""
        return self.state is not None and not self.written.done()

    def finish(self) -> SaveReport:
        """Wait for the files of all ranks and publish them. Raises CheckpointError after max_failures + 1 in a row."""
        assert self.state is not None
        waited = time.perf_counter()
        files, seconds, error = self._result()
        waited = time.perf_counter() - waited
        results = gather_from_ranks((files, seconds, error))
        errors = [f"rank {rank}: {text}" for rank, (_, _, text) in enumerate(results) if text]
        manifest = {name: entry for found, _, _ in results for name, entry in found.items()}
        problem = "; ".join(errors) or on_first_rank(lambda: self._publish(manifest))
        if problem and torch.distributed.get_rank() == 0:
            shutil.rmtree(self.aside, ignore_errors=True)
        report = SaveReport(
            self.state.step,
            self.final,
            problem,
            self.copy_seconds + waited,
            max(spent for _, spent, _ in results),
            sum(entry["bytes"] for entry in manifest.values()),
        )
        self.state = None
        self.num_failures = self.num_failures + 1 if problem else 0
        if self.num_failures > self.max_failures:
            raise CheckpointError(
                f"{self.root}: {self.num_failures} checkpoints in a row could not be written ({problem}); make room "
                "there, then run the same command again: it continues from the newest that is whole"
            )
        return report

    def _result(self) -> tuple[dict[str, dict], float, str | None]:
        """Return this rank's files, the seconds they took, and what went wrong with the disk."""
        error = self.written.exception()  # waits
        if error is None:
            return *self.written.result(), self.begin_error
        if not isinstance(error, OSError):
            raise error
        return {}, 0.0, error.strerror or str(error)

    def _publish(self, manifest: dict[str, dict]) -> None:
        assert self.state is not None
        write_json(self.aside / STATE_FILE, asdict(self.state))
        manifest[STATE_FILE] = describe_file(self.aside / STATE_FILE)
        write_json(self.aside / MANIFEST_FILE, dict(sorted(manifest.items())))
        shutil.rmtree(self.final, ignore_errors=True)  # an earlier life of the run may have come this far
        publish_directory(self.aside, self.final)
        name_latest(self.final)
        prune(self.root, self.retention, self.state.step)

    def close(self) -> None:
        """Wait for the thread. What it has written without `finish` is no checkpoint."""
        self.thread.shutdown()


def _write_all(copies: list[tuple[str, Any]], directory: Path, host: HostCopy) -> tuple[dict[str, dict], float]:
    """Write each table to its path, on disk when this returns; return sizes and hashes by name, and the seconds."""
    started = time.perf_counter()
    host.wait()
    files = {}
    for path, table in copies:
        with open(path, "wb") as file:
            hashing = _HashingFile(file)
            try:
                torch.save(table, hashing)  # type: ignore[arg-type]
            except RuntimeError:  # what torch's zip writer makes of the error below it
                if hashing.error is None:
                    raise
                raise hashing.error from None
            file.flush()
            os.fsync(file.fileno())
        files[str(Path(path).relative_to(directory))] = {
            "bytes": hashing.num_bytes,
            "blake2b": hashing.digest.hexdigest(),
        }
    return files, time.perf_counter() - started
