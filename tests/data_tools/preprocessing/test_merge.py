"""`merge`: the documents of all sets, in order; sets of different kinds are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cmbert.data.shards.shard_set import ShardSet
from cmbert.errors import ConfigError, ShardError
from data_tools.preprocessing.inspection import describe, show_document
from data_tools.preprocessing.merge import merge
from data_tools.preprocessing.preprocess import preprocess
from data_tools.preprocessing.verify import find_faults


@pytest.fixture
def two_sets(write_lines: Callable, tokenizer_directory: Path, tmp_path: Path) -> list[Path]:
    sets = []
    for name in ("news", "web"):
        corpus = write_lines(f"{name}.jsonl", [{"text": f"{name}第{i}篇今天天气很好。"} for i in range(30)])
        preprocess([str(corpus)], tokenizer_directory, tmp_path / name, shard_tokens=400)
        sets.append(tmp_path / name)
    return sets


def test_merged_sets(two_sets: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merge(two_sets, tmp_path / "all")
    assert not list(find_faults(tmp_path / "all"))
    parts, whole = [ShardSet(directory) for directory in two_sets], ShardSet(tmp_path / "all")
    assert whole.num_documents == 60
    assert [path.name for path in whole.prefixes] == [f"{i:05d}" for i in range(len(whole.prefixes))]
    for index in range(60):
        expected = parts[index // 30].read(index % 30)
        assert [array.tolist() for array in whole.read(index)] == [array.tolist() for array in expected]
    assert set(whole.manifest["sources"]) == {"news", "web"}
    assert (tmp_path / "all/00000.bin").stat().st_nlink == 2  # linked, not copied
    capsys.readouterr()
    merge(two_sets, tmp_path / "all")
    assert "done already" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="other settings"):
        merge(two_sets[:1], tmp_path / "all")


def test_mixed_tokenizers_are_refused(
    two_sets: list[Path], write_lines: Callable, known_tokenizer_directory: Path, tmp_path: Path
) -> None:
    corpus = write_lines("other.jsonl", [{"text": "今天"}])
    preprocess([str(corpus)], known_tokenizer_directory, tmp_path / "other")
    with pytest.raises(ShardError, match="its tokenizer is not that of"):
        merge([*two_sets, tmp_path / "other"], tmp_path / "all")
    (two_sets[1] / "00000.bin").write_bytes(b"")
    with pytest.raises(ShardError, match="truncated"):
        merge(two_sets, tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_inspect(two_sets: list[Path], tokenizer_directory: Path) -> None:
    from cmbert.tokenizer import load_tokenizer

    page = describe(two_sets[0])
    assert "30 documents" in page
    assert "source news: 30 documents" in page
    assert "█" in page
    tokenizer = load_tokenizer(tokenizer_directory)
    plain = show_document(two_sets[0], 3, tokenizer, colour=False)
    assert plain.replace("|", "") == "news第3篇今天天气很好。"
    assert "news|第|3|篇" in plain
    coloured = show_document(two_sets[0], 3, tokenizer, colour=True)
    assert coloured.count("\x1b[0m") == len(plain.split("|"))
    ids = ShardSet(two_sets[0]).read(3)[0].tolist()
    assert show_document(two_sets[0], 3, None, colour=False).replace("|", " ") == " ".join(map(str, ids))
    with pytest.raises(ConfigError, match="documents 0 to 29"):
        show_document(two_sets[0], 30, tokenizer, colour=False)
