"""`verify`: sound sets pass; any flipped bit, any disagreement is named."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cmbert.data.shards.layout import token_dtype
from cmbert.data.shards.manifest import write_manifest
from cmbert.data.shards.megatron import write_idx
from cmbert.data.shards.shard_set import ShardSet
from cmbert.data.shards.writer import ShardWriter
from cmbert.errors import ConfigError, ShardError
from cmbert.files.operations import hash_file
from cmbert.tokenizer import load_tokenizer
from data_tools.encoding.encoders import BatchEncoder, Encoded
from data_tools.encoding.manifest import Tally, sealed
from data_tools.preprocessing.merge import merge
from data_tools.preprocessing.preprocess import preprocess
from data_tools.preprocessing.verify import find_faults

TEXTS = ["他在北京大学读书。", "今天天气很好，我们去公园。" * 3, "第一行\r\n第二行 😀"]


@pytest.fixture
def directory(write_lines: Callable, tokenizer_directory: Path, tmp_path: Path) -> Path:
    corpus = write_lines("corpus.jsonl", [{"text": text} for text in TEXTS])
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards")
    return tmp_path / "shards"


def change(directory: Path, name: str, raw: bytes) -> None:
    """Replace a shard file and let the manifest vouch for it: only the contents' own logic can tell."""
    (directory / name).write_bytes(raw)
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    shard, suffix = manifest["shards"][0], name.split(".")[1]
    shard["bytes"][suffix], shard["blake2b"][suffix] = len(raw), hash_file(directory / name)
    write_manifest(directory, sealed(manifest))


def test_a_sound_set(directory: Path, tokenizer_directory: Path) -> None:
    assert list(find_faults(directory, tokenizer=load_tokenizer(tokenizer_directory))) == []
    assert list(find_faults(directory, quick=True)) == []


@pytest.mark.parametrize("name", ["00000.bin", "00000.idx", "00000.words", "manifest.json"])
def test_a_flipped_bit_is_found(directory: Path, name: str) -> None:
    path = directory / name
    raw = path.read_bytes()
    for position in range(len(raw)):
        flipped = bytearray(raw)
        flipped[position] ^= 1 << (position * 5 + position // 8) % 8
        path.write_bytes(flipped)
        assert next(find_faults(directory), None), f"byte {position} of {name}"
    path.write_bytes(raw)
    assert not list(find_faults(directory))


@pytest.mark.parametrize("name", ["00000.bin", "00000.idx", "00000.words", "manifest.json"])
def test_truncated_and_missing_files(directory: Path, name: str) -> None:
    path = directory / name
    path.write_bytes(path.read_bytes()[:-3])
    assert [name in fault for fault in find_faults(directory, quick=True)] == [True]
    path.unlink()
    faults = list(find_faults(directory, quick=True))
    assert len(faults) == 1
    assert name in faults[0]


def test_every_fault_is_listed(directory: Path) -> None:
    (directory / "00000.words").unlink()
    with (directory / "00000.idx").open("ab") as file:
        file.write(b"\0")
    (directory / "00001.bin").touch()
    faults = list(find_faults(directory))
    assert ["00000.idx" in faults[0], "00000.words" in faults[1], "00001.bin" in faults[2]] == [True] * 3
    assert len(faults) == 3


def test_a_text_that_cannot_be_encoded_again(
    directory: Path, tokenizer_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: BatchEncoder, texts: list[str]) -> Encoded:
        return Encoded(np.zeros(0, np.uint32), np.zeros(len(texts), np.int64), dict.fromkeys(range(len(texts)), "no"))

    monkeypatch.setattr(BatchEncoder, "encode", refuse)
    faults = list(find_faults(directory, tokenizer=load_tokenizer(tokenizer_directory)))
    assert faults == [f"{directory}: document {number} cannot be encoded again (no)" for number in range(len(TEXTS))]


def test_ids_that_cannot_be(directory: Path) -> None:
    tokens = np.fromfile(directory / "00000.bin", "<u2")
    tokens[:3] = 384, 999, 2
    change(directory, "00000.bin", tokens.tobytes())
    faults = list(find_faults(directory))
    assert "2 ids outside the vocabulary of 384" in faults[0]
    assert "1 special tokens" in faults[1]


def test_units_that_cannot_be(directory: Path) -> None:
    raw = bytearray((directory / "00000.words").read_bytes())
    raw[0] &= 0xFE  # the first token of the first document
    raw[-1] |= 0x80
    change(directory, "00000.words", bytes(raw))
    faults = "\n".join(find_faults(directory))
    assert "1 documents begin inside a unit" in faults
    assert "bits set after the last token" in faults


def test_an_index_that_cannot_be(directory: Path) -> None:
    lengths = np.fromfile(directory / "00000.idx", "<i4", len(TEXTS), offset=34)
    write_idx(directory / "other.idx", lengths[::-1] + np.array([1, 0, 0]), np.dtype("<u2"))
    raw = (directory / "other.idx").read_bytes()
    (directory / "other.idx").unlink()
    change(directory, "00000.idx", raw)
    assert "the manifest says" in next(find_faults(directory))
    swapped = bytearray(raw)
    swapped[-16:] = raw[-8:] + raw[-16:-8]
    change(directory, "00000.idx", bytes(swapped))
    assert any("document bounds" in fault for fault in find_faults(directory))
    with pytest.raises(ShardError, match=r"00000\.idx: its document bounds"):
        merge([directory], directory / "merged")  # nothing is made of it
    assert not (directory / "merged").exists()


def test_one_unit_per_token_is_noticed(tmp_path: Path) -> None:
    writer, count = ShardWriter(tmp_path, "00000", token_dtype(384)), 1200
    writer.append(np.full(count, 7), np.array([count]), np.ones(count, bool))
    tally = Tally(characters=count, units=count, word_boundaries=count - 1)
    tally.count_document("s", count, count)
    tally.token_lengths[1] = tally.unit_lengths[1] = count
    words = {"name": "jieba", "version": "0.42.1", "dictionary_hash": "h"}
    described = {"tokenizer": {"fingerprint": "f", "vocab_size": 384}, "segmenter": words, "normalizer": None}
    write_manifest(tmp_path, sealed({**described, **tally.as_manifest(), "shards": [writer.close()], "settings": {}}))
    assert ["word ids silently one per token" in fault for fault in find_faults(tmp_path)] == [True]


def test_histograms_must_add_up(directory: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    manifest["unit_length_histogram"]["counts"][1] += 1
    manifest["totals"]["tokens"] += 1
    manifest["straddle"]["lost"] += 1
    write_manifest(directory, sealed(manifest))
    faults = "\n".join(find_faults(directory))
    for part in ("tokens in the shards", "tokens in the sources", "unit-length", "token-length", "add up"):
        assert part in faults


def test_another_tokenizer_is_noticed(directory: Path, known_tokenizer_directory: Path) -> None:
    faults = list(find_faults(directory, tokenizer=load_tokenizer(known_tokenizer_directory)))
    assert ["made with tokenizer" in fault for fault in faults] == [True]


def test_units_that_are_not_the_words(directory: Path, tokenizer_directory: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_directory)
    shards = ShardSet(directory)
    starts = np.concatenate([shards.read(index)[1] for index in range(3)])
    inside = np.flatnonzero(~starts)[:1]
    moved = starts.copy()
    moved[inside] = True  # one more unit, one fewer elsewhere: every count still agrees
    moved[np.setdiff1d(np.flatnonzero(starts), shards.locate(np.arange(3))[1])[:1]] = False
    change(directory, "00000.words", np.packbits(moved, bitorder="little").tobytes())
    assert not list(find_faults(directory))
    assert any("units are not those of its words" in fault for fault in find_faults(directory, tokenizer=tokenizer))


def test_the_source_is_compared(directory: Path, tokenizer_directory: Path, tmp_path: Path) -> None:
    tokenizer, corpus = load_tokenizer(tokenizer_directory), tmp_path / "corpus.jsonl"
    compared = {"tokenizer": tokenizer, "source": [str(corpus)]}
    assert not list(find_faults(directory, **compared))
    text = corpus.read_text(encoding="utf-8")
    corpus.write_text(text.replace("北京", "南京"), encoding="utf-8")
    assert list(find_faults(directory, **compared)) == [f"{directory}: document 0 is not the source's corpus.jsonl:0"]
    corpus.write_text(text + json.dumps({"text": "多了一篇"}) + "\n" + json.dumps({"text": ""}), encoding="utf-8")
    assert list(find_faults(directory, **compared)) == [f"{directory}: 3 documents, the source has 4"]
    with pytest.raises(ConfigError, match="--tokenizer"):
        list(find_faults(directory, source=[str(corpus)]))


def test_more_shards_than_file_handles(write_lines: Callable, tokenizer_directory: Path, tmp_path: Path) -> None:
    corpus = write_lines("corpus.jsonl", [{"text": f"{i}{TEXTS[1]}"} for i in range(200)])
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards", shard_tokens=20)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))\n"
        "from pathlib import Path; from cmbert.data.shards.shard_set import ShardSet; from data_tools.cli import main\n"
        "shards = ShardSet(Path(sys.argv[1])); assert len(shards.prefixes) == 200\n"
        "assert sum(len(shards.read(i)[0]) for i in range(200)) == shards.num_tokens\n"
        "sys.exit(main(['verify', sys.argv[1]]) or main(['inspect', sys.argv[1]])\n"
        "    or main(['merge', sys.argv[1], sys.argv[1], '--output', sys.argv[1] + '2']))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "shards")], check=True)
