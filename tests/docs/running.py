"""Run the documents' commands, in order, each once, as the reader's shell would."""

import functools
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import cmbert.cli
import data_tools.cli
from tests import forking
from tests.docs.documents import OURS, ROOT, Command, commands, documents
from tests.docs.exceptions import INSTEAD, NOT_RUN, SMALLER

MAX_RANKS = 2  # of a training, whatever the document says: so many cores has the machine that tests
LIMIT_SECONDS = 240


class Shell:
    """Runs commands in one folder and remembers which are done."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.done: set[str] = set()
        self.documents_done: set[Path] = set()
        self.seconds: dict[str, float] = {}

    def run_through(self, document: Path) -> None:
        """Run every complete command of the documents up to this one that is not done yet."""
        for path in documents():
            if path not in self.documents_done:
                self.documents_done.add(path)  # what fails here fails once, not in the tests of the documents after it
                for command in commands(path):
                    if not _is_a_step_later(command):
                        self.run(command)
            if path == document:
                return

    def run_the_beginning(self, document: Path, last: str) -> None:
        """Run a document's commands up to the first that begins with `last`."""
        for command in commands(document):
            self.run(command)
            if command.text.startswith(last):
                return
        raise AssertionError(f"{document}: no command begins with {last}")

    def run(self, command: Command) -> None:
        """Run what stands for a command, unless it has run before; fail with its document, line and output."""
        for text in lines_to_run(command):
            if text in self.done:
                continue
            started = time.monotonic()
            code, output = self.execute(shlex.split(text))
            self.seconds[text] = time.monotonic() - started
            assert code == 0, f"{command.where}\nran: {text}\nexit code {code}\n{output[-4000:]}"
            self.done.add(text)

    def execute(self, words: list[str]) -> tuple[int, str]:
        """Run one command: our own programs that start no others in this process, the rest without a cold start."""
        if words[0] in OURS and words[1] not in ("ablate", "train"):
            return self._execute_here(words)
        done = forking.run(
            as_started(words),
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stderr=subprocess.STDOUT,
            timeout=LIMIT_SECONDS,
        )
        return done.returncode, done.stdout

    def _execute_here(self, words: list[str]) -> tuple[int, str]:
        program = cmbert.cli if words[0] == "cmbert" else data_tools.cli
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            return program.main(words[1:]), "(see the captured output)"
        except SystemExit as stop:  # argparse: --help, or an option that is not there
            return int(stop.code or 0), "(see the captured output)"
        finally:
            os.chdir(before)


def as_started(words: list[str]) -> list[str]:
    """Return the program and arguments that run a command of the documents here; AssertionError: nobody knows how."""
    match words:
        case ["mpiexec", "-n", ranks, program, *rest]:
            mpiexec = Path(sys.executable).parent / "mpiexec"
            return [str(mpiexec), "-n", ranks, sys.executable, "-m", program, *rest]
        case ["cmbert", "train", recipe, "--processes", ranks, *more]:
            fewer = ["--processes", str(min(int(ranks), MAX_RANKS))]
            return [sys.executable, "-m", "cmbert", "train", recipe, *fewer, *more]
        case ["cmbert" | "data_tools" as program, *rest]:
            return [sys.executable, "-m", program, *rest]
        case ["python", *rest]:
            return [sys.executable, *rest]
        case ["source", *_]:
            return ["bash", "-euc", shlex.join(words)]
    raise AssertionError(f"nobody knows how to run {shlex.join(words)}")


@functools.cache
def _steps() -> dict[str, tuple[str, ...]]:
    """Return the documents that have a command among their steps, in a block or a table."""
    found: dict[str, tuple[str, ...]] = {}
    for path in documents():
        for command in commands(path):
            if not command.is_inline or command.is_cell:
                found[command.text] = (*found.get(command.text, ()), command.document)
    return found


def _is_a_step_later(command: Command) -> bool:
    """Return whether a sentence mentions what another document has among its steps: it runs there, after the others."""
    places = _steps().get(command.text, ())
    return command.is_inline and not command.is_cell and bool(places) and command.document not in places


def lines_to_run(command: Command) -> list[str]:
    """Return what runs for a command: itself, or what stands in exceptions.py; nothing if it is not to be run."""
    text = next((f"{command.text} {more}" for start, more in SMALLER.items() if command.text.startswith(start)), None)
    text = text or command.text
    if command.text in INSTEAD:
        return [line.replace("{}", text) for line in INSTEAD[command.text]]
    return [] if is_left_out(command) or is_only_named(command) else [text]


def is_left_out(command: Command) -> bool:
    """Return whether exceptions.py says why a command is not run here."""
    return any(re.fullmatch(entry.pattern, command.text) for entry in NOT_RUN)


def is_only_named(command: Command) -> bool:
    """Return whether a sentence names a command without its arguments, as `cmbert plan`: there is nothing to run."""
    if not command.is_inline or "--help" in command.words:
        return False
    is_ours = command.words[0] in OURS and all(word.startswith("--") for word in command.words[2:])
    return len(command.words) == 1 or is_ours
