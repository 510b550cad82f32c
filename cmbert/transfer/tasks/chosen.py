"""Which tasks a call is about: some by name, or one that is no more than its files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from cmbert.errors import ConfigError, InputError
from cmbert.files.names import real
from cmbert.transfer.tasks.task import ProblemType, Task, check_task, find_data, find_task

NAMED = ("task", "data")
FILED = ("train", "text", "label")  # what files take at least
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a command line says of the tasks; None: nothing. Either the first two, or of the rest what it takes."""

    task: Sequence[str] | None = None
    """Names and TOML files."""
    data: Path | None = None
    """Folder of the files; of several tasks, their parent."""
    train: Path | None = None
    dev: Path | None = None
    """None: a tenth of train is held back."""
    test: Path | None = None
    text: Sequence[str] | None = None
    """Columns, or keys of JSON lines: one, or two for a pair."""
    label: str | None = None
    problem_type: ProblemType | None = None
    max_length: int | None = None
    """Tokens."""

    def tasks(self) -> list[tuple[Task, Path]]:
        """Return each task and the folder of its files.

        Raises ConfigError for a choice of neither or both kinds, and names that make no task; InputError for a file
        that is not there or of another kind.
        """
        given = [field.name for field in fields(self) if getattr(self, field.name)]
        named = [name for name in given if name in NAMED]
        filed = [name for name in given if name not in NAMED]
        if named and filed:
            raise ConfigError(f"{_option(filed[0])} and {_option(named[0])} exclude each other: leave one of them out")
        if not given:
            raise ConfigError("--task: missing; name it and --data, or --train FILE --text COLUMN --label COLUMN")
        for name in NAMED if named else FILED:
            if name not in given:
                raise ConfigError(f"{_option(name)}: missing; it goes with {_option(given[0])}")
        return self._named() if named else [self._filed()]

    def _named(self) -> list[tuple[Task, Path]]:
        assert self.task
        assert self.data
        tasks = [find_task(name) for name in self.task]
        return [(task, find_data(self.data, task, len(tasks))) for task in tasks]

    def _filed(self) -> tuple[Task, Path]:
        """Return the task of some files, named after the training file, and that file's folder."""
        assert self.train
        assert self.text
        assert self.label
        given = {"train": self.train, "dev": self.dev, "test": self.test}
        for name, path in given.items():
            if path and path.suffix.lower() not in SUFFIXES:
                raise InputError(f"--{name} {path}: must be {', '.join(SUFFIXES)}; save a spreadsheet as CSV in UTF-8")
            if path and not path.is_file():
                raise InputError(f"--{name} {path}: no such file")
        if self.dev and real(self.dev) == real(self.train):
            raise ConfigError(f"--dev {self.dev}: is the training file; leave it out, and a tenth of that is held back")
        folder = self.train.parent
        train, dev, test = ((os.path.relpath(path, folder),) if path else () for path in given.values())
        task = Task(
            name=self.train.stem,
            text=tuple(self.text),
            label=self.label,
            problem_type=self.problem_type or Task.problem_type,
            train=train,
            dev=dev,
            test=test,
            max_length=self.max_length or Task.max_length,
        )
        check_task(task, ("text",), f"--train {self.train}")
        return task, folder


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
