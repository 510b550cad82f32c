"""The same command again: what is there and sound is kept, what changed since is made anew, another set is refused."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import data_tools.outputs
import data_tools.preprocessing.preprocess
from cmbert.data.shards.shard_set import ShardSet
from cmbert.errors import ConfigError, ShardError
from cmbert.tokenizer import load_tokenizer
from data_tools.encoding.encode import DocumentEncoder, EncodedBatch
from data_tools.input.document import Document
from data_tools.preprocessing.preprocess import preprocess
from data_tools.preprocessing.verify import find_faults
from data_tools.runner import Share
from tests.data_tools.preprocessing.shard_bytes import SENTENCE, hashes


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

    def note(self: DocumentEncoder, documents: Sequence[Document]) -> EncodedBatch:
        encoded.extend(document.text for document in documents)
        return encode(self, documents)

    encode = DocumentEncoder.__call__
    monkeypatch.setattr(DocumentEncoder, "__call__", note)
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
