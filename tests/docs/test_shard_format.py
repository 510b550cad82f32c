"""docs/shard_format.md is enough: a reader written from it alone, and its own snippets, agree with ours."""

import json
from pathlib import Path

import numpy as np
import pytest

from cmbert.data.shards.manifest import write_manifest
from cmbert.data.shards.shard_set import ShardSet
from cmbert.data.shards.writer import ShardWriter
from cmbert.tokenizer import Tokenizer
from data_tools.preprocessing.preprocess import preprocess
from data_tools.runner import local_workers
from tests.docs.documents import ROOT, blocks
from tests.docs.shard_reader import documents_of, read_documents

PAGE = ROOT / "docs" / "shard_format.md"
TEXTS = (
    "今天天气很好，我们一起去公园散步。",
    "I bought 3 books，价格是１２元。",
    "好",
    "他在北京大学学习计算机科学。" * 40,
)


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory, tokenizer_directory: Path) -> Path:
    """Four shards that `preprocess` made, the last byte of their unit bits partly filled."""
    folder = tmp_path_factory.mktemp("format")
    lines = [json.dumps({"text": text * (number % 3 + 1)}, ensure_ascii=False) for number, text in enumerate(TEXTS * 5)]
    (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with local_workers(1) as workers:
        preprocess(
            [str(folder / "text.jsonl")],
            tokenizer_directory,
            folder / "shards",
            segmenter_name="jieba",
            text_key="text",
            on_bad_line="fail",
            shard_tokens=3_000,
            workers=workers,
            share=None,
        )
    return folder / "shards"


def test_a_reader_written_from_the_page_reads_every_token_and_unit(shard_set: Path) -> None:
    ours = ShardSet(shard_set)
    assert len(ours.prefixes) > 1
    theirs = list(read_documents(shard_set))
    assert len(theirs) == ours.num_documents == len(TEXTS) * 5
    for document, (tokens, unit_starts) in enumerate(theirs):
        expected_tokens, expected_starts = ours.read(document)
        assert tokens == expected_tokens.tolist()
        assert unit_starts == expected_starts.tolist()


def test_ids_of_32_bits(tmp_path: Path, tokenizer: Tokenizer) -> None:
    writer = ShardWriter(tmp_path, "00000", np.dtype("<i4"))
    tokens = np.array([70_000, 5, 100_000, 7, 8, 9, 10, 11, 12])
    writer.append(tokens, np.array([4, 5]), np.array([1, 0, 1, 0, 1, 1, 0, 0, 1], bool))
    entry = {"fingerprint": tokenizer.fingerprint, "vocab_size": 131_072}
    write_manifest(tmp_path, {"tokenizer": entry, "shards": [writer.close()]})
    (shard,) = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["shards"]
    raw = {suffix: (tmp_path / f"00000.{suffix}").read_bytes() for suffix in ("bin", "idx", "words")}
    found = list(documents_of(shard, raw))
    assert [document for document, _ in found] == [[70_000, 5, 100_000, 7], [8, 9, 10, 11, 12]]
    assert found[1][1] == [True, True, False, False, True]


def test_every_key_of_a_manifest_is_on_the_page(shard_set: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    manifest = json.loads((shard_set / "manifest.json").read_text(encoding="utf-8"))
    named = {*manifest, *manifest["shards"][0], *manifest["totals"], *manifest["straddle"], *manifest["segmenter"]}
    assert not [key for key in named if f"`{key}`" not in page]


@pytest.mark.filterwarnings("ignore")
def test_the_snippets_of_the_page_run(shard_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shard_set.parent)
    (shard_set.parent / "runs" / "quickstart").mkdir(parents=True, exist_ok=True)
    (shard_set.parent / "runs" / "quickstart" / "shards").symlink_to(shard_set)
    snippets = ["\n".join(lines) for _, language, lines in blocks(PAGE) if language == "python"]
    assert len(snippets) == 3
    expected_tokens, expected_starts = ShardSet(shard_set).read(0)
    for snippet in snippets:
        if "megatron" in snippet:
            pytest.importorskip("megatron.core.datasets.indexed_dataset")
        names: dict = {}
        exec(snippet, names)
        assert names["tokens"].tolist() == expected_tokens.tolist()
        if "unit_starts" in names:
            assert names["unit_starts"].tolist() == expected_starts.tolist()
