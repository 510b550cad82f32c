"""Shards: the same bytes whoever makes them and however often they are killed."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import cmbert.files.folders
import data_tools.input.tasks
import data_tools.preprocessing.preprocess
from cmbert.data.shards.shard_set import ShardSet
from cmbert.data.shards.writer import ShardWriter
from cmbert.errors import ConfigError
from cmbert.tokenizer import load_tokenizer
from data_tools.preprocessing.preprocess import preprocess
from data_tools.preprocessing.verify import find_faults
from data_tools.runner import Share, local_workers
from tests.data_tools.preprocessing.shard_bytes import SENTENCE, hashes

SMALL_TASKS = "import data_tools.input.tasks, sys; data_tools.input.tasks.SMALLEST_TASK_BYTES = {size}\n"
PROGRAM = SMALL_TASKS + "from data_tools.cli import main\nif __name__ == '__main__': sys.exit(main(sys.argv[1:]))"


def test_workers_and_tasks_change_nothing(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, task_bytes, count in (("whole", 10**9, 1), ("small", 2_000, 1), ("tiny", 100, 2)):
        monkeypatch.setattr(data_tools.input.tasks, "SMALLEST_TASK_BYTES", task_bytes)
        with local_workers(count) as workers:
            preprocess([str(corpus)], tokenizer_directory, tmp_path / name, shard_tokens=2_000, workers=workers)
        assert not list(find_faults(tmp_path / name, tokenizer=load_tokenizer(tokenizer_directory)))
    assert hashes(tmp_path / "whole") == hashes(tmp_path / "small") == hashes(tmp_path / "tiny")
    shards = ShardSet(tmp_path / "whole")
    assert len(shards.prefixes) > 2
    assert max(shards.shard_tokens) <= 2_000
    assert not list(tmp_path.glob(".*"))  # parts and partial files are gone


@pytest.mark.usefixtures("small_tasks")
def test_an_array_of_jobs(corpus: Path, tokenizer_directory: Path, tmp_path: Path) -> None:
    def run(name: str, share: Share | None = None) -> None:
        preprocess([str(corpus)], tokenizer_directory, tmp_path / name, shard_tokens=2_000, share=share)

    run("alone")
    run("array", Share(2, 3))
    run("array", Share(0, 3))
    assert not (tmp_path / "array").exists()
    run("array")  # the last step also does what job 1 did not
    assert hashes(tmp_path / "array") == hashes(tmp_path / "alone")
    with pytest.raises(ConfigError, match="allows 0 to 2"):
        Share.of(3, 3)


@pytest.mark.usefixtures("small_tasks")
def test_a_full_disk_is_one_error_and_no_loss(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    appends = []

    def full(self: ShardWriter, *arguments: object) -> None:
        appends.append(self)
        if len(appends) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, *arguments)

    append = ShardWriter.append
    with monkeypatch.context() as patched:
        patched.setattr(ShardWriter, "append", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*\.shards\.parts'"):
            preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards")
    assert len(list((tmp_path / ".shards.parts").iterdir())) == 3  # the torn fourth is not there
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards")
    assert not list(find_faults(tmp_path / "shards"))


def test_killed_again_and_again(write_lines: Callable, tokenizer_directory: Path, tmp_path: Path) -> None:
    corpus = write_lines("corpus.jsonl", [{"text": f"{i}{SENTENCE * 40}"} for i in range(8_000)])  # 22 MB, 115 tasks
    options = ["--tokenizer", str(tokenizer_directory), "--input", str(corpus), "--shard-tokens", "500000"]
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(size=200_000))
    command = [sys.executable, str(program), "preprocess", "--workers", "2", *options, "--output"]
    moments, parts_seen = random.Random(0), [0]

    def count_parts() -> int:
        return len(list(tmp_path.glob(".killed.parts/*/manifest.json")))

    for _ in range(4):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
        while count_parts() <= parts_seen[-1] and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()  # its workers find out and leave
        process.wait()
        assert not (tmp_path / "killed").exists(), "it was done before it was killed: give it more to do"
        parts_seen.append(count_parts())
    assert parts_seen == sorted(parts_seen)
    for name in ("killed", "unbroken"):
        subprocess.run([*command, str(tmp_path / name)], check=True, stdout=subprocess.DEVNULL)
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "unbroken")
    assert not list(find_faults(tmp_path / "killed"))


@pytest.mark.mpi
def test_mpi_ranks(corpus: Path, tokenizer_directory: Path, tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.is_file():
        pytest.skip("no mpiexec beside Python (pip install mpich)")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(size=2_000))
    options = ["--input", str(corpus), "--tokenizer", str(tokenizer_directory), "--shard-tokens", "2000"]
    for ranks in (2, 3):
        command = [mpiexec, "-n", str(ranks), sys.executable, program, "preprocess", "--mpi", *options]
        subprocess.run([*command, "--output", tmp_path / f"mpi{ranks}"], check=True, timeout=120)
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "alone", shard_tokens=2_000)
    assert hashes(tmp_path / "alone") == hashes(tmp_path / "mpi2") == hashes(tmp_path / "mpi3")
    missing = [mpiexec, "-n", "2", sys.executable, program, "preprocess", "--mpi", *options[2:], "--input", "none"]
    done = subprocess.run([*missing, "--output", tmp_path / "x"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.count("data_tools: error: none: no ") == 1


@pytest.mark.usefixtures("small_tasks")
@pytest.mark.parametrize(
    ("moment", "call"),
    [
        ("make_part", 1),
        ("make_part", 3),
        ("publish_directory", 3),
        ("sum_parts", 1),
        ("assemble", 1),
        ("write_manifest", -1),
        ("publish_directory", -1),
    ],
)
def test_the_same_job_twice_at_once(
    moment: str, call: int, corpus: Path, tokenizer_directory: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The second does all its work while the first is at `moment` for the call-th time; -1 = for the set itself."""
    room = cmbert.files.folders if (moment, call) == ("publish_directory", -1) else data_tools.preprocessing.preprocess
    sound, output = getattr(room, moment), tmp_path / "shards"
    calls: list[str] = []
    others: list[str] = []

    def late(*arguments: object) -> object:
        calls.append(moment)
        is_set = str(arguments[0]).endswith(".partial")
        if not others and (is_set if call < 0 else len(calls) == call):
            others.append(moment)
            with monkeypatch.context() as other:  # another process, which lives
                other.setattr(os, "getpid", os.getppid)
                preprocess([str(corpus)], tokenizer_directory, output)
        return sound(*arguments)

    preprocess([str(corpus)], tokenizer_directory, tmp_path / "alone")
    monkeypatch.setattr(room, moment, late)
    capsys.readouterr()
    preprocess([str(corpus)], tokenizer_directory, output)
    assert others
    assert hashes(output) == hashes(tmp_path / "alone")
    assert not list(tmp_path.glob(".*"))
    assert capsys.readouterr().out.endswith(f"{output}: made by another job meanwhile, with the same settings\n")


def test_an_interrupt_keeps_what_is_done(write_lines: Callable, tokenizer_directory: Path, tmp_path: Path) -> None:
    corpus = write_lines("corpus.jsonl", [{"text": SENTENCE * 100}] * 12_000)  # 80 MB, some ten seconds of work
    options = ["--tokenizer", str(tokenizer_directory), "--output", str(tmp_path / "shards"), "--workers", "2"]
    command = [sys.executable, "-m", "data_tools", "preprocess", "--input", str(corpus), *options]
    # A shell that runs the tests in the background lets them ignore Ctrl-C, and children inherit that.
    hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=hear)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".shards.parts/*/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "data_tools: interrupted; run the same command again to continue"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".shards.parts", "corpus.jsonl"]
