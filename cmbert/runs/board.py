"""TensorBoard's event files, its only home."""

import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from cmbert.files.operations import doing
from cmbert.files.patient import PatientFile


class Board:
    """An event file of TensorBoard's. Its own writer has a thread that dies of a full disk and then blocks training."""

    def __init__(self, folder: Path, first_step: int):
        """first_step: TensorBoard forgets what an earlier life of the run has shown from there on."""
        with doing("create", folder):
            folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self.file = PatientFile(folder / name)
        self.records = RecordWriter(self.file)
        self._write(event_pb2.Event(file_version="brain.Event:2"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(step=first_step, session_log=start))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self.records.write(event.SerializeToString())

    def add(self, scalars: dict[str, float], step: int) -> None:
        """Show numbers of one step."""
        values = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=values)))
