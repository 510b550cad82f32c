"""Shards: the same bytes for any worker count, opened by Megatron-Core, made once, whole or not at all."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import data_tools.preprocess
from cmbert.data.shards import ShardSet, read_manifest
from cmbert.errors import ConfigError, InputError
from cmbert.files import hash_file
from cmbert.tokenizer import load_tokenizer
from data_tools.preprocess import preprocess
from data_tools.verify import find_faults

SENTENCE = "他在北京大学读书，今天天气很好。GPT-4v2.0的T恤衫😀\n"


@pytest.fixture
def corpus(write_lines: Callable) -> Path:
    return write_lines("corpus.jsonl", [{"text": SENTENCE * (i % 7), "source": f"s{i % 2}"} for i in range(80)])


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in sorted(directory.iterdir())}


def test_worker_count_changes_nothing(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_tools.preprocess, "BATCH_CHARACTERS", 500)
    for workers in (1, 2):
        output = tmp_path / f"by{workers}"
        preprocess([str(corpus)], tokenizer_directory, output, num_workers=workers, shard_tokens=2_000)
        assert not list(find_faults(output, tokenizer=load_tokenizer(tokenizer_directory)))
    assert hashes(tmp_path / "by1") == hashes(tmp_path / "by2")
    shards = ShardSet(tmp_path / "by1")
    assert len(shards.prefixes) > 2
    assert max(shards.shard_tokens) <= 2_000


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
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards", num_workers=2)
    assert "done already" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"other settings \(shard_tokens\)"):
        preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards", shard_tokens=99)
    with corpus.open("a") as file:
        file.write('{"text": "更多"}\n')
    with pytest.raises(ConfigError, match=r"other settings \(inputs\)"):
        preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards")
    assert hashes(tmp_path / "shards") == before


def test_bad_lines_are_counted_or_stop_it(write_lines: Callable, tokenizer_directory: Path, tmp_path: Path) -> None:
    corpus = write_lines("corpus.jsonl", [{"text": SENTENCE}, b"{", {"body": ""}, b'{"text": "\xff"}'])
    with pytest.raises(InputError, match=r"corpus\.jsonl:2"):
        preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards", num_workers=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl"]
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards", on_bad_line="skip")
    counted = {"invalid_utf8": 1, "no_text": 1, "not_json": 1}
    assert read_manifest(tmp_path / "shards")["skipped_lines"] == counted


def test_no_text_at_all(write_lines: Callable, tokenizer_directory: Path, tmp_path: Path) -> None:
    corpus = write_lines("corpus.jsonl", [{"text": ""}])
    with pytest.raises(InputError, match="no document with text"):
        preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def test_an_interrupt_leaves_nothing(write_lines: Callable, tokenizer_directory: Path, tmp_path: Path) -> None:
    corpus = write_lines("corpus.jsonl", [{"text": SENTENCE * 100}] * 3_000)  # a minute of work
    options = ["--tokenizer", str(tokenizer_directory), "--output", str(tmp_path / "shards"), "--workers", "2"]
    command = [sys.executable, "-m", "data_tools", "preprocess", "--input", str(corpus), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".shards.partial/*.bin")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines() == ["data_tools: interrupted; run the same command again to continue"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl"]
