"""How a command line ends: one line and a code for what the user can mend, a traceback for our own bugs."""

import errno
import os
import shlex
import subprocess
import sys

import pytest

from cmbert.errors import PASSING_ERRNOS, ConfigError, LeaseLostError, TransientError, run_command


def fail(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("a.toml: key: remedy"), 2, "cmbert: error: a.toml: key: remedy\n"),
        (PermissionError(13, "Permission denied", "/x"), 2, "cmbert: error: /x: Permission denied; "),
        (OSError(28, "No space left on device"), 2, "cmbert: error: No space left on device; "),
        (TransientError("rank 3: lost; run again"), 74, "cmbert: error: rank 3: lost; run again\n"),
        (LeaseLostError("run: another has it"), 73, "cmbert: error: run: another has it\n"),
        (BrokenPipeError(32, "Broken pipe", "/x"), 74, "cmbert: error: /x: Broken pipe; this may pass: run the same "),
        (KeyboardInterrupt(), 130, "cmbert: interrupted; "),
        (
            ModuleNotFoundError("No module named 'sentence_transformers.x'", name="sentence_transformers.x"),
            2,
            "cmbert: error: sentence_transformers is not installed: pip install 'cmbert[eval]'\n",
        ),
    ],
)
def test_one_line_and_a_code(error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("cmbert", lambda: fail(error)) == code
    shown = capsys.readouterr().err
    assert shown.startswith(line)
    assert shown.count("\n") == 1


STAYING = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE,
           errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP)  # fmt: skip


@pytest.mark.parametrize("number", [*sorted(PASSING_ERRNOS), *STAYING], ids=errno.errorcode.get)
def test_each_error_of_the_system_says_whether_it_may_pass(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    passing = number not in STAYING
    assert run_command("cmbert", lambda: fail(OSError(number, os.strerror(number), "/x"))) == (74 if passing else 2)
    advice = "this may pass: run the same command again" if passing else "mend that and run the same command again"
    assert capsys.readouterr().err == f"cmbert: error: /x: {os.strerror(number)}; {advice}\n"


def test_our_own_bugs_keep_their_traceback() -> None:
    with pytest.raises(KeyError):
        run_command("cmbert", lambda: fail(KeyError("bug")))
    with pytest.raises(ModuleNotFoundError):
        run_command("cmbert", lambda: fail(ModuleNotFoundError("No module named 'cmbert.bug'", name="cmbert.bug")))


PRINTING = "from cmbert.errors import run_command; run_command('x', lambda: print('line\\n' * 100000))"
LOGGING = """import logging
from cmbert.errors import run_command
from cmbert.progress import log_to_stdout
log_to_stdout('cmbert', '%(message)s')
run_command('x', lambda: [logging.getLogger('cmbert.part').info('line') for _ in range(100000)] and 0)"""


@pytest.mark.parametrize("code", [PRINTING, LOGGING])
def test_a_reader_that_leaves_is_no_error(code: str) -> None:
    shown = subprocess.run(
        f"{sys.executable} -c {shlex.quote(code)} | head -1", shell=True, capture_output=True, text=True
    )
    assert shown.stdout == "line\n"
    assert shown.stderr == ""


def test_a_name_from_outside_does_not_break_the_line() -> None:
    said = str(ConfigError("a\nb\u2028c\ud83d\x85\x1b[31m：\u3000好.toml: no such recipe"))
    assert said == r"a\nb\u2028c\ud83d\x85\x1b[31m：\u3000好.toml: no such recipe".replace(r"\u3000", "\u3000")
    assert len(said.splitlines()) == 1
