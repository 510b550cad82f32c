"""Every open, read, write, fsync and rename of a run fails once: how the run ends, and that nothing is lost by it."""

import errno
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cmbert.checkpoint.retention import REMOVED_SUFFIX
from cmbert.errors import EXIT_TRANSIENT, EXIT_USER_ERROR, PASSING_ERRNOS
from cmbert.files.operations import RETRY_SECONDS
from tests import forking
from tests.integration.launching import start, trace, train

SHARES = 4
STEPS = ("--max-steps", "9")  # a save begins, one is published while training goes on, one at the end


class World:
    """Trainings whose files fail on demand."""

    def __init__(self, recipe: Path, under: Path, monkeypatch: pytest.MonkeyPatch):
        self.recipe, self.under, self.monkeypatch = recipe, under, monkeypatch
        self.run = recipe.parent / "run"

    def train(self, *arguments: str, code: int = 0, **settings: str) -> str:
        """Train with the variables of fail_io.c, FAIL_ left out; return what was said."""
        with self.monkeypatch.context() as patch:
            for name, value in {"UNDER": str(self.under), **settings}.items():
                patch.setenv(f"FAIL_{name}", value)
            return train(self.recipe, *arguments, code=code)

    def fail(self, call: "Call", number: int, *arguments: str) -> tuple[int, str]:
        """Train while one call fails with an error number; return exit code and what was said."""
        with self.monkeypatch.context() as patch:
            settings = {"UNDER": self.under, "OPERATION": call.operation, "PATH": call.pattern, "AT": call.at,
                        "TIMES": 1, "ERRNO": number}  # fmt: skip
            for name, value in settings.items():
                patch.setenv(f"FAIL_{name}", str(value))
            process = start(self.recipe, *arguments)
            output, _ = process.communicate(timeout=240)
            return process.returncode, output


class Call(NamedTuple):
    """One call of an operation."""

    operation: str
    pattern: str
    """Of the path."""
    at: int
    """Which of the calls, from 1."""


@pytest.fixture(scope="module", autouse=True)
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A server of trainings that asks before each call whether it shall fail."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("fail_io") / "fail_io.so"
    source = Path(__file__).with_name("fail_io.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    before, os.environ["LD_PRELOAD"] = forking.Server.current, str(library)
    forking.Server.current = None
    try:
        forking.Server.get()
        del os.environ["LD_PRELOAD"]
        yield
    finally:
        os.environ.pop("LD_PRELOAD", None)
        forking.Server.current.link.close()
        forking.Server.current = before


@pytest.fixture
def world(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(recipe_file, tmp_path_factory.getbasetemp(), monkeypatch)


def calls(log: Path) -> list[Call]:
    """Return the calls of a run to let fail: the first of each operation on each kind of file, and of each checkpoint.

    Of the shards, one file of each kind is enough, and one checkpoint of those that are written between others. A
    checkpoint that is read is proved first: the last call is DeepSpeed's.
    """
    found: dict[tuple[str, ...], Call] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for line in log.read_text(encoding="utf-8").splitlines():
        operation, path = line.split("\t")
        path = re.sub(r"(?<=\.lease\.)[a-z].*|(?<=\.)\d+$|(?<=tfevents\.).*|(?<=plan/).*", "*", path)
        if not re.search(r"/0000[12]\.|\.step_000000008", path):
            found[operation, path] = Call(operation, path, 1)
            counts[operation, path] += 1
            if re.search(r"/step_\d+/.*\.pt$", path) and operation in ("open", "read"):
                found[operation, path, "last"] = Call(operation, path, counts[operation, path])
    return list(found.values())


def check_end(call: Call, number: int, code: int, output: str) -> None:
    """It survived and said so, or ended with the right code and one line that names the file and the operation."""
    shown = f"{call}, error {number}, exit code {code}:\n{output}"
    assert "Traceback" not in output, shown
    place = Path(call.pattern)
    if place.suffix == ".pt" and call.at > 1:
        place = place.parent  # DeepSpeed reads it, and torch does not say which file
    name = place.name.strip(".*").removesuffix(".")
    operation = "(map|open|read)" if call.operation in ("map", "open", "read") else call.operation
    if place.suffix == REMOVED_SUFFIX and call.operation == "open":  # a folder is opened to be emptied
        operation = "remove"
    told = [line for line in output.splitlines() if name in line and re.search(rf"\({operation}\)", line)]
    if code == 0:  # a file that is only looked for may be passed over in silence
        assert told or call.operation in ("stat", "list") or name == "state.json", shown
        return
    passing = number in PASSING_ERRNOS
    assert code == (EXIT_TRANSIENT if passing else EXIT_USER_ERROR), shown
    errors = [line for line in output.splitlines() if "error: " in line]
    assert len(errors) == 1, shown
    assert name in errors[0], shown
    assert errors[0].endswith("run the same command again"), shown
    assert ("this may pass" in errors[0]) == passing, shown
    assert told or call.operation in ("stat", "list") or "/logs/" in call.pattern, shown


SMALL = [  # pattern, operation, which call, error number, exit code
    ("*/shards/00000.idx", "read", 1, errno.ESTALE, 0),
    ("*/run/metrics.jsonl", "write", 3, errno.EIO, EXIT_TRANSIENT),
    ("*/run/ledger/*.bin", "write", 3, errno.EROFS, EXIT_USER_ERROR),
    ("*/.step_000000004.*_optim_states.pt", "fsync", 1, errno.ESHUTDOWN, 0),
    ("*/step_000000009", "rename", 1, errno.ETIMEDOUT, EXIT_TRANSIENT),
    ("*/.step_000000009.*_optim_states.pt", "open", 1, errno.EACCES, EXIT_USER_ERROR),
]


@pytest.mark.parametrize(("pattern", "operation", "at", "number", "expected"), SMALL)
def test_one_failure(
    world: World, reference: Callable[..., Path], pattern: str, operation: str, at: int, number: int, expected: int
) -> None:
    call = Call(operation, pattern, at)
    code, output = world.fail(call, number, *STEPS)
    assert code == expected, output
    assert "Traceback" not in output
    assert f"{os.strerror(number)} ({operation})" in output
    train(world.recipe)
    assert trace(world.run) == trace(reference(world.recipe))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "share"), [(errno.EIO, 0), (errno.EACCES, 2)])
@pytest.mark.parametrize("phase", ["a new run", "a resumed one"])
def test_calls_of_a_run(
    world: World, tmp_path: Path, reference: Callable[..., Path], phase: str, number: int, share: int
) -> None:
    """Every fourth of the 150 calls, so that it takes minutes; `share`: from which one on."""
    expected, log, before = trace(reference(world.recipe)), tmp_path / "log", tmp_path / "before"
    before.mkdir()
    arguments = STEPS
    if phase == "a resumed one":
        train(world.recipe, *STEPS)
        shutil.rmtree(before)
        shutil.copytree(world.run, before)
        arguments = ()
    world.train(*arguments, LOG=str(log))
    found = calls(log)
    assert {"open", "read", "write", "fsync", "rename", "link", "map"} <= {call.operation for call in found}
    for call in found[share::SHARES]:
        shutil.rmtree(world.run)
        shutil.copytree(before, world.run)
        check_end(call, number, *world.fail(call, number, *arguments))
        output = train(world.recipe)
        assert trace(world.run) == expected, f"{call}:\n{output}"
        quarantined = [
            path.name for path in (world.run / "checkpoints").iterdir() if path.suffix in (".damaged", ".left")
        ]
        assert not quarantined, call


@pytest.mark.slow
def test_a_shard_that_stays_unreadable_ends_the_run_after_half_a_minute(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = world.train(
        code=EXIT_TRANSIENT, OPERATION="map", PATH="*/shards/00001.bin", AT="1", TIMES="99", ERRNO=str(errno.EIO)
    )
    assert output.count("00001.bin: Input/output error (map); trying again in") == len(RETRY_SECONDS)
    assert "00001.bin: Input/output error (map); this may pass: run the same command again" in output
