"""The commands on text in a store: the same bytes as from a disk, whatever befalls the connection."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import data_tools.input.tasks
import data_tools.storage.files
from data_tools.cli import main
from tests.data_tools.storage.fault_proxy import Proxy

Upload = Callable[[str, bytes], str]
KINDS = ("jsonl", "jsonl.gz", "jsonl.zst", "parquet", "txt", "csv.gz", "json")


def texts(seed: int, number: int = 300) -> list[str]:
    characters = np.random.default_rng(seed).integers(0x4E00, 0x9FA6, (number, 60))
    return ["今天天气很好。" + "".join(map(chr, line[: 5 + i % 55])) for i, line in enumerate(characters)]


def packed(kind: str, written: list[str]) -> bytes:
    """Return a file of a kind."""
    if kind == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"text": written}), sink := io.BytesIO(), row_group_size=100)
        return sink.getvalue()
    lines = {
        "jsonl": [json.dumps({"text": text}, ensure_ascii=False) for text in written],
        "txt": written,
        "csv": ["text", *written],
        "json": [json.dumps(written, ensure_ascii=False)],
    }
    data = "\n".join(lines[kind.split(".")[0]]).encode()
    if kind.endswith(".zst"):
        return pytest.importorskip("zstandard").ZstdCompressor().compress(data)
    return gzip.compress(data, mtime=0) if kind.endswith(".gz") else data


@pytest.fixture
def both(tmp_path: Path, upload: Upload) -> tuple[str, str]:
    """The same files of every kind on the disk and in the store."""
    folder = tmp_path / "text"
    folder.mkdir()
    for seed, kind in enumerate(KINDS):
        data = packed(kind, texts(seed))
        (folder / f"第 {seed}.{kind}").write_bytes(data)
        upload(f"text/第 {seed}.{kind}", data)
    return str(folder), "s3://corpus/text"


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Return the files of an output but for what says which input it had."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in ("manifest.json", "sample.json", "training.json", "extension.json"):
        found.pop(name, None)
    assert found
    return found


def same(tmp_path: Path, both: tuple[str, str], *command: str, option: str = "--input") -> None:
    outputs = []
    for number, origin in enumerate(both):
        outputs.append(tmp_path / f"out{number}")
        assert main([*command, option, origin, "--output", str(outputs[-1])]) == 0
    assert bytes_of(outputs[0]) == bytes_of(outputs[1])
    assert main([*command, option, both[1], "--output", str(outputs[1])]) == 0  # done already


@pytest.mark.parametrize("faulty", [False, True])
def test_preprocess(
    both: tuple[str, str], tmp_path: Path, known_tokenizer_directory: Path, faulty: bool, proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(data_tools.input.tasks, "SMALLEST_TASK_BYTES", 10_000)
    monkeypatch.setattr(data_tools.storage.files, "FIRST_BYTES", 3_000)
    kinds = ("SlowDown", "", "cut", "", "short", "", "drop", "", "NoXML", "")
    proxy.fault = lambda method, path, number: kinds[number % len(kinds)] if faulty else ""
    same(tmp_path, both, "preprocess", "--tokenizer", str(known_tokenizer_directory), "--workers", "1")
    if faulty:
        assert len(proxy.requests) > 60


def test_preprocess_by_several_processes(
    both: tuple[str, str], tmp_path: Path, known_tokenizer_directory: Path
) -> None:
    same(tmp_path, both, "preprocess", "--tokenizer", str(known_tokenizer_directory), "--workers", "2")


def test_sample(both: tuple[str, str], tmp_path: Path) -> None:
    same(tmp_path, both, "sample", "--size", "100kB", option="--from")


@pytest.mark.slow
def test_tokenizers(both: tuple[str, str], tmp_path: Path) -> None:
    same(tmp_path, both, "train-tokenizer", "--vocab-size", "704")
    (tmp_path / "more").mkdir()
    same(tmp_path / "more", both, "extend-tokenizer", "--tokenizer", str(tmp_path / "out0"), "--add", "64")


@pytest.mark.slow
def test_clean(both: tuple[str, str], tmp_path: Path) -> None:
    outputs = [tmp_path / "out0", tmp_path / "out1"]
    for origin, output in zip(both, outputs, strict=True):
        command = ["clean", "--input", origin, "--against", f"{origin}/第 4.txt", "--output", str(output)]
        assert main([*command, "--workers", "1"]) == 0
    texts = [
        [path.read_bytes() for path in sorted(output.glob("*.zst"))]
        + [json.loads((output / "report.json").read_bytes())["dropped"]]
        for output in outputs
    ]
    assert texts[0] == texts[1]
    assert "held_out" in str(texts[0][-1])


def test_an_output_is_never_refused_for_a_store(both: tuple[str, str], tmp_path: Path) -> None:
    assert main(["sample", "--from", both[1], "--output", str(tmp_path / "s3:" / "corpus" / "text" / "x")]) == 0


def test_a_store_that_does_not_answer_ends_in_one_line(
    both: tuple[str, str], tmp_path: Path, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy.fault = lambda method, path, number: "SlowDown" if method == "GET" and "list-type" not in path else ""
    assert main(["sample", "--from", both[1], "--output", str(tmp_path / "out")]) == 74
    said = capsys.readouterr().err
    assert said.startswith("data_tools: error: s3://corpus/text/第 ")
    assert said.count("\n") == 1
    assert "Please reduce your request rate" in said
    assert not (tmp_path / "out").exists()
    assert main(["sample", "--from", "s3://corpus/none", "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
