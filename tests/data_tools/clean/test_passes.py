"""The passes of `clean`: the same bytes for one worker, many, MPI and arrays; killed anywhere, they go on."""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import data_tools.input.tasks
from cmbert.errors import ConfigError
from cmbert.files.operations import hash_file
from data_tools.clean import clean as module
from data_tools.clean.clean import clean
from data_tools.clean.config import CleanConfig
from data_tools.runner import Share, local_workers
from tests.data_tools.clean.texts import LONG
from tests.processes import is_alive

PROGRAM = """
import sys
import data_tools.input.tasks, data_tools.clean.duplicates.bands
data_tools.input.tasks.SMALLEST_TASK_BYTES = {size}
data_tools.clean.duplicates.bands.MOST_ENTRIES = {entries}
from data_tools.cli import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def hashes(folder: Path) -> dict[str, str]:
    """Hash all that `clean` writes; of the report, which names its folders, what it counts."""
    return {path.name: hash_file(path) for path in sorted(folder.iterdir()) if path.name != "report.json"}


@pytest.fixture
def corpus(write_lines: Callable) -> Path:
    """Texts of their own, equal ones and near copies of each other all over the file, in random order."""
    draw = np.random.default_rng(0)
    own = ["".join(chr(0x4E00 + int(code)) for code in draw.integers(0, 9_000, 120)) for _ in range(300)]
    texts = [*own, *own[::5], *(f"{text[:60]}，{text[60:-1]}。" for text in own[::3]), "短"]
    draw.shuffle(texts)
    return write_lines("corpus.jsonl", [{"text": text} for text in texts])


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_tools.input.tasks, "SMALLEST_TASK_BYTES", 8_000)


CONFIG = CleanConfig(heldout_share=0.2)


def run_all(corpus: Path, folder: Path, **how: object) -> None:
    """Clean into `folder`, its held-out share and its signatures beside it."""
    beside = {"heldout": folder / "held", "signatures": folder / "signatures"}
    clean([str(corpus)], folder / "text", config=CONFIG, **beside, **how)  # type: ignore[arg-type]


def hashes_of_all(folder: Path) -> dict[str, dict[str, str]]:
    assert sorted(path.name for path in folder.iterdir()) == ["held", "signatures", "text"]
    return {path.name: hashes(path) for path in folder.iterdir()}


@pytest.mark.usefixtures("small_tasks")
def test_arrays_give_the_same_bytes(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with local_workers(2) as workers:
        run_all(corpus, tmp_path / "alone", workers=workers)
    capsys.readouterr()
    said: list[str] = []
    for number in itertools.cycle((2, 0, 1)):  # one after the other, each in the first pass that is not complete
        run_all(corpus, tmp_path / "array", share=Share(number, 3))
        said.append(capsys.readouterr().out.removeprefix(f"{tmp_path}/array/text: ").split(":")[0])
        if said[-1].startswith("all passes are complete"):
            break
    assert [*dict.fromkeys(said[:-1])] == ["filter", "compare", "cluster", "write"]
    assert said.count("filter") == said.count("compare") == said.count("write") == 3
    assert not (tmp_path / "array" / "text").exists()
    run_all(corpus, tmp_path / "array")
    assert hashes_of_all(tmp_path / "array") == hashes_of_all(tmp_path / "alone")
    run_all(corpus, tmp_path / "array", share=Share(1, 3))
    assert "done already" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="allows 0 to 2"):
        Share.of(3, 3)


@pytest.mark.mpi
def test_mpi_ranks_give_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.is_file():
        pytest.skip("no mpiexec beside Python (pip install mpich)")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(size=8_000, entries=200))
    given = ["clean", "--input", str(corpus), "--output"]
    for ranks in (2, 3):
        command = [mpiexec, "-n", str(ranks), sys.executable, program, *given, tmp_path / f"mpi{ranks}", "--mpi"]
        subprocess.run(command, check=True, timeout=300)
    subprocess.run([sys.executable, program, *given, tmp_path / "alone", "--workers", "1"], check=True, timeout=300)
    assert hashes(tmp_path / "alone") == hashes(tmp_path / "mpi2") == hashes(tmp_path / "mpi3")
    assert len(hashes(tmp_path / "alone")) > 10


@pytest.mark.usefixtures("small_tasks")
@pytest.mark.parametrize("renamed", range(4))
def test_a_kill_between_the_renames_loses_nothing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: int
) -> None:
    """Held-out share, signatures and output appear one after the other."""
    run_all(corpus, tmp_path / "whole")
    publish, done = module.publish_directory, []

    def publish_some(aside: Path, final: Path) -> None:
        if len(done) == renamed:
            raise KeyboardInterrupt
        publish(aside, final)
        done.append(final)

    with monkeypatch.context() as patch:
        patch.setattr(module, "publish_directory", publish_some)
        if renamed == 3:  # all; what is left is the work folder
            patch.setattr(module, "remove", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_all(corpus, tmp_path / "killed")
    run_all(corpus, tmp_path / "killed")
    assert hashes_of_all(tmp_path / "killed") == hashes_of_all(tmp_path / "whole")


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_workers_end_with_their_parent(tmp_path: Path, write_lines: Callable) -> None:
    """Else they would go on with tasks of a call that is gone."""
    corpus = write_lines("corpus.jsonl", [{"text": f"{i}{LONG}" * 5} for i in range(300)])
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, time\nimport data_tools.clean.judge, data_tools.input.tasks\n"
        "data_tools.input.tasks.SMALLEST_TASK_BYTES = 300_000\n"
        "def wait(*_):\n    open(f'{sys.argv[-1]}.{os.getpid()}', 'w').close()\n    time.sleep(600)\n"
        "data_tools.clean.judge.drop_reason = wait\n"
        "from data_tools.cli import main\nif __name__ == '__main__': sys.exit(main(sys.argv[1:]))"
    )
    output = tmp_path / "killed"
    command = [sys.executable, str(program), "clean", "--input", str(corpus), "--workers", "2", "--output", str(output)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        wait_until(lambda: len(list(tmp_path.glob("killed.*"))) == 2)
        workers = [int(path.suffix[1:]) for path in tmp_path.glob("killed.*")]
        process.kill()
        process.wait()
        wait_until(lambda: not any(map(is_alive, workers)))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_killed_again_and_again(tmp_path: Path, corpus: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(size=5_000, entries=100))
    command = [sys.executable, str(program), "clean", "--input", str(corpus), "--workers", "2", "--output"]
    moments = random.Random(0)

    def count_markers() -> int:
        return len(list(tmp_path.glob(".killed.clean/*/done*/*.json")))

    for _ in range(4):
        there = count_markers()
        process = subprocess.Popen([*command, str(tmp_path / "killed")], start_new_session=True)
        wait_until(lambda seen=there, running=process: count_markers() > seen + 3 or running.poll() is not None)
        time.sleep(moments.uniform(0, 0.2))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert count_markers() > 12, "it was done before it was killed: give it more to do"
    assert not (tmp_path / "killed").exists()
    for name in ("killed", "unbroken"):
        subprocess.run([*command, str(tmp_path / name)], check=True, stdout=subprocess.DEVNULL)
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "unbroken")
    assert not list(tmp_path.glob(".*"))
