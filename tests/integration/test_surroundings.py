"""Commands in surroundings that are not a developer's: odd locales, no terminal, full disks, odd folders and limits."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cmbert.progress import Progress

ROOT = Path(__file__).parents[2]
LOCALES: dict[str, dict[str, str]] = {
    "C": {"LC_ALL": "C"},
    "POSIX, ASCII": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    **{name: {"PYTHONIOENCODING": name} for name in ("ascii", "ascii:strict", "gbk", "latin-1", "utf-16")},
}


def run(*words: str | bytes, shell: str = "{}", environment: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """Run a command as a shell does, in an environment beside ours; return its code and all that it said.

    shell: the line in which {} is the command.
    """
    command = [sys.executable, "-m", "cmbert", *words]
    line = shell.replace("{}", '"$@"')
    found = subprocess.run(
        ["bash", "-c", line, "bash", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return found.returncode, found.stdout


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
    ("{} <&- >&- 2>&-", 0, ""),
    ("{} 2>&-", 0, "parameters"),
    ("{} >/dev/full", 2, "cmbert: error: standard output: No space left on device; mend that and run the same"),
    ("{} >/dev/full 2>/dev/full", 2, ""),
    ("{} | true; exit ${PIPESTATUS[0]}", 141, ""),
]


@pytest.mark.parametrize(("shell", "code", "line"), STREAMS)
def test_streams_that_take_nothing(recipe_file: Path, shell: str, code: int, line: str) -> None:
    page = recipe_file.with_suffix(".html")
    found, said = run("plan", str(recipe_file), "--page", str(page), shell=shell)
    assert found == code, said
    assert line.lower() in said.decode().lower()
    assert b"Traceback" not in said
    assert b"Exception" not in said
    assert page.read_text(encoding="utf-8").rstrip().endswith("</html>")


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
    sent = os.read(controller, 4096).decode()
    os.close(controller)
    return sent


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
