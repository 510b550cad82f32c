"""Commands say what they can to any stream: odd locales, no terminal or a narrow one, closed pipes, a full device."""

import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.progress import Progress
from tests.integration.shell import LOCALES, ROOT, run

ALL_HELP = """
import contextlib, sys
from cmbert.cli import build_parser, main
from data_tools import cli as data_tools
for program, parser in ((main, build_parser()), (data_tools.main, data_tools.build_parser())):
    for command in parser._subparsers._group_actions[0].choices:
        with contextlib.suppress(SystemExit):
            program([command, "--help"])
print("\\u4e2d \\u27e6 \\u2192 \\xb1 \\udcff")
"""


@pytest.mark.parametrize("name", LOCALES)
def test_what_a_stream_cannot_show_is_no_error(name: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **LOCALES[name]}
    shown = subprocess.run([sys.executable, "-c", ALL_HELP], env=environment, capture_output=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, b"")
    code, said = run("plan", "中文→.toml".encode(), environment=LOCALES[name])
    encoding = "utf-16" if name == "utf-16" else "ascii"
    assert code == 2
    assert said.decode(encoding, "replace").startswith("cmbert: error: ")
    assert said.decode(encoding, "replace").count("\n") == 1


def test_texts_of_a_step_in_ascii(recipe_file: Path, reference: Callable[..., Path]) -> None:
    run_directory = str(reference(recipe_file))
    code, said = run("ledger", run_directory, "--step", "1", "--show", environment={"PYTHONIOENCODING": "ascii"})
    assert code == 0
    assert b"\\u27e6" in said.splitlines()[-1]


STREAMS = [  # a line of a shell, exit code, what is said
    ("{} 2>&-", 0, "parameters"),
    ("{} >/dev/full", 2, "cmbert: error: standard output: No space left on device; mend that and run the same"),
    ("{} >/dev/full 2>/dev/full", 2, ""),
    ("{} | true; exit ${PIPESTATUS[0]}", 141, ""),
]


@pytest.mark.parametrize(("shell", "code", "line"), STREAMS)
def test_streams_that_take_nothing(recipe_file: Path, shell: str, code: int, line: str) -> None:
    found, said = run("plan", str(recipe_file), shell=shell)
    assert found == code, said
    assert line.lower() in said.decode().lower()
    assert b"Traceback" not in said
    assert b"Exception" not in said


def test_no_file_is_taken_for_a_closed_stream(recipe_file: Path) -> None:
    page = recipe_file.with_suffix(".html")
    assert run("plan", str(recipe_file), "--page", str(page), shell="{} <&- >&- 2>&-") == (0, b"")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert text.rstrip().endswith("</html>")


@pytest.mark.parametrize("shell", ["{} 2>/dev/full", "{} 2>&-", "{} 2>&1 | true; exit ${PIPESTATUS[0]}"])
def test_errors_that_nobody_hears_have_their_code(shell: str) -> None:
    assert run("plan", "missing.toml", shell=shell) == (2, b"")


LOGGING = """
import logging, sys
from cmbert.errors import run_command
from cmbert.progress import log_to_stdout
log_to_stdout("cmbert", "%(message)s")
def work():
    for number in range(1000):
        logging.getLogger("cmbert.part").info("line %d", number)
sys.exit(run_command("cmbert", work))
"""


def test_log_lines_that_are_lost_are_told_once_and_no_failure() -> None:
    with open("/dev/full", "wb") as full:
        shown = subprocess.run(
            [sys.executable, "-c", LOGGING], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert shown.returncode == 0
    assert shown.stderr == ("cmbert: standard output: No space left on device; log lines are lost, the work goes on\n")


def on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, terminal: str | None) -> str:
    """Return what a terminal is sent by a progress line."""
    controller, end = pty.openpty()
    if columns:
        subprocess.run(["stty", "cols", str(columns)], stdin=end, check=True)
    monkeypatch.delenv("TERM", raising=False)
    if terminal:
        monkeypatch.setenv("TERM", terminal)
    with open(end, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        progress = Progress("a rather long label of some work", 10, "rows")
        progress.interval = 0
        progress.advance(1)
        progress.close()
    sent = b""
    with contextlib.suppress(OSError):  # EIO: all of it is read, and nobody has the other end any more
        while part := os.read(controller, 4096):  # one write at a time, on a busy machine
            sent += part
    os.close(controller)
    return sent.decode()


def test_progress_on_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = on_terminal(monkeypatch, 0, "xterm")
    assert "left" in wide
    assert "\n" not in wide
    narrow = on_terminal(monkeypatch, 12, "xterm")
    assert narrow == "\r\x1b[Ka rather lo\r\x1b[K"
    for terminal in ("dumb", None):
        plain = on_terminal(monkeypatch, 80, terminal)
        assert plain.endswith("left\r\n")
        assert "\x1b" not in plain
