"""Shards of other people's tokenizers: made, verified, inspected, merged and masked like those of our own."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import data_tools.input.tasks
from cmbert.config.schema import DataConfig, MaskConfig, SourceConfig
from cmbert.data.reader import open_reader
from cmbert.data.shards.manifest import read_manifest, write_manifest
from cmbert.data.shards.shard_set import ShardSet
from cmbert.errors import ConfigError, InputError
from cmbert.files.operations import hash_file
from cmbert.tokenizer import load_tokenizer
from data_tools.encoding.manifest import sealed
from data_tools.preprocessing.inspection import describe, show_document
from data_tools.preprocessing.merge import merge
from data_tools.preprocessing.preprocess import preprocess
from data_tools.preprocessing.verify import find_faults
from tests.data_tools.preprocessing.shard_bytes import hashes
from tests.other_tokenizers import KINDS, mixed_texts, wordpiece, write, write_kind

KNOWN = "今天天气很好，我们去公园。Today isn't on 2024。"
UNKNOWN = "鑫龘😀"


@pytest.fixture
def mixed_corpus(write_lines: Callable) -> Path:
    texts = [
        KNOWN,
        "",
        "\x01\x02",
        *mixed_texts(40, seed=2),
        KNOWN * 40,
    ]  # nothing, and nothing left of it in WordPiece
    return write_lines("mixed.jsonl", [{"text": text} for text in texts])


@pytest.mark.parametrize("kind", KINDS)
def test_from_text_to_masks(
    kind: str,
    mixed_corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    directory, folder = write_kind(tmp_path / "tokenizer", kind), tmp_path / "whole"
    preprocess([str(mixed_corpus)], directory, folder, shard_tokens=1_000)
    monkeypatch.setattr(data_tools.input.tasks, "SMALLEST_TASK_BYTES", 500)
    preprocess([str(mixed_corpus)], directory, tmp_path / "small", shard_tokens=1_000)
    assert hashes(folder) == hashes(tmp_path / "small")
    tokenizer = load_tokenizer(directory)
    vocabulary, manifest, shards = tokenizer.vocabulary, read_manifest(folder), ShardSet(folder)
    tokens = np.concatenate([shards.read(document)[0] for document in range(shards.num_documents)])
    assert manifest["tokenizer"]["special_ids"] == sorted(set(vocabulary.special) - {vocabulary.unk_id})
    unknown = np.count_nonzero(tokens == vocabulary.unk_id) if vocabulary.unk_id is not None else None
    assert manifest["totals"].get("unknown_tokens") == unknown
    texts = [json.loads(line)["text"] for line in mixed_corpus.read_text(encoding="utf-8").splitlines()]
    dropped = sum(bool(text) and not tokenizer.encode(text) for text in texts)
    assert manifest["skipped_lines"] == {"empty_text": 1} | ({"no_tokens": dropped} if dropped else {})
    assert dropped or "wordpiece" not in kind
    with caplog.at_level(logging.INFO):
        assert list(find_faults(folder, tokenizer=tokenizer)) == []
    assert "documents not compared, for its tokenizer loses some text; add --input" in caplog.text
    assert list(find_faults(folder, tokenizer=tokenizer, source=[str(mixed_corpus)])) == []
    assert show_document(folder, 0, tokenizer, colour=False)
    source = SourceConfig(path=str(folder))
    data = DataConfig(tokenizer=str(directory), sources=(source,), context_tokens=64, shuffle_block_rows=32)
    reader = open_reader(data, MaskConfig(), tokenizer, seed=3)
    for row in range(reader.blend.sources[0].num_rows):
        plain, masked = reader.micro_batch([row], 0.0), reader.micro_batch([row], 0.4)
        asked = np.zeros(len(masked.input_ids), dtype=bool)
        asked[masked.masked_positions.numpy()] = True
        before, now = plain.input_ids.numpy(), masked.input_ids.numpy()
        assert vocabulary.is_ordinary[before[asked]].all()
        assert (before[asked] == masked.targets.numpy()).all()
        assert (before[~asked] == now[~asked]).all()
        assert (vocabulary.is_ordinary[now[asked]] | (now[asked] == vocabulary.mask_id)).all()


def test_another_source_is_noticed(mixed_corpus: Path, tmp_path: Path) -> None:
    directory, folder = write_kind(tmp_path / "tokenizer", "wordpiece, special ids last"), tmp_path / "shards"
    preprocess([str(mixed_corpus)], directory, folder)
    compared = {"tokenizer": load_tokenizer(directory), "source": [str(mixed_corpus)]}
    lines = mixed_corpus.read_text(encoding="utf-8").splitlines(keepends=True)
    mixed_corpus.write_text("".join([lines[0].replace(KNOWN[:2], "北京"), *lines[1:]]), encoding="utf-8")
    fault = f"{folder}: document 0 has not the tokens of the source's mixed.jsonl:0"
    assert list(find_faults(folder, **compared)) == [fault]
    mixed_corpus.write_text("".join([*lines, json.dumps({"text": KNOWN})]), encoding="utf-8")
    number = ShardSet(folder).num_documents
    assert list(find_faults(folder, **compared)) == [f"{folder}: {number} documents, the source has {number + 1}"]
    mixed_corpus.write_text(json.dumps({"text": ""}), encoding="utf-8")
    assert list(find_faults(folder, **compared)) == [f"{folder}: {number} documents, the source has 0"]


def test_moved_units_and_special_tokens_are_noticed(write_lines: Callable, tmp_path: Path) -> None:
    directory, folder = write_kind(tmp_path / "tokenizer", "wordpiece, special ids last"), tmp_path / "shards"
    corpus = write_lines("corpus.jsonl", [{"text": KNOWN}])
    preprocess([str(corpus)], directory, folder)
    tokenizer, shards = load_tokenizer(directory), ShardSet(folder)
    tokens, starts = shards.read(0)

    def change(name: str, raw: bytes) -> None:
        (folder / name).write_bytes(raw)
        manifest = read_manifest(folder)
        manifest["shards"][0]["blake2b"][name[6:]] = hash_file(folder / name)
        manifest["shards"][0]["crc32"] = None
        del manifest["shards"][0]["crc32"]
        write_manifest(folder, sealed(manifest))

    inside = np.flatnonzero(~starts)[0]
    moved = starts.copy()
    moved[inside], moved[np.flatnonzero(starts)[-1]] = True, False
    change("00000.words", np.packbits(moved, bitorder="little").tobytes())
    faults = list(find_faults(folder, tokenizer=tokenizer, source=[str(corpus)]))
    assert faults == [f"{folder}: document 0: its units are not those of its words"]
    change("00000.words", np.packbits(starts, bitorder="little").tobytes())
    changed = tokens.copy()
    changed[1], changed[2] = tokenizer.vocabulary.mask_id, tokenizer.vocabulary.unk_id
    change("00000.bin", changed.tobytes())
    assert list(find_faults(folder)) == [f"{folder / '00000.bin'}: 1 special tokens; shards hold none"]


def test_unknown_tokens_are_said(
    write_lines: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    directory = write_kind(tmp_path / "tokenizer", "wordpiece")
    few = write_lines("few.jsonl", [{"text": KNOWN * 40 + UNKNOWN}])
    many = write_lines("many.jsonl", [{"text": KNOWN + UNKNOWN}])
    preprocess([str(few)], directory, tmp_path / "few")
    assert ", 0.36 % of the tokens unknown\n" in capsys.readouterr().out
    assert "unknown" not in caplog.text
    preprocess([str(many)], directory, tmp_path / "many")
    assert ", 12.50 % of the tokens unknown\n" in capsys.readouterr().out
    assert f"{tmp_path / 'many'}: 12.5 % of its tokens are unknown: the tokenizer cannot spell that text" in caplog.text
    merge([tmp_path / "few", tmp_path / "many"], tmp_path / "both")
    assert read_manifest(tmp_path / "both")["totals"]["unknown_tokens"] == 6
    assert not list(find_faults(tmp_path / "both"))
    assert "6 tokens are unknown: text that the tokenizer cannot spell (0.69 %)" in describe(tmp_path / "both")
    assert show_document(tmp_path / "many", 0, load_tokenizer(directory), colour=False).startswith("今天天气|很|好|，|")
    manifest = read_manifest(tmp_path / "both")
    manifest["totals"]["unknown_tokens"] = 10**6
    write_manifest(tmp_path / "both", sealed(manifest))
    assert ["1000000 unknown tokens of" in fault for fault in find_faults(tmp_path / "both")] == [True]
    manifest["totals"]["unknown_tokens"] = "6"
    write_manifest(tmp_path / "both", sealed(manifest))
    assert ["totals.unknown_tokens" in fault for fault in find_faults(tmp_path / "both")] == [True]


def test_sets_of_own_tokenizers_say_nothing_of_it(corpus: Path, tokenizer_directory: Path, tmp_path: Path) -> None:
    preprocess([str(corpus)], tokenizer_directory, tmp_path / "shards")
    manifest = read_manifest(tmp_path / "shards")
    assert set(manifest["totals"]) == {"documents", "tokens", "text_bytes", "characters", "units"}
    assert "unknown" not in describe(tmp_path / "shards")


def test_more_ids_than_16_bits_hold(write_lines: Callable, tmp_path: Path) -> None:
    corpus = write_lines("corpus.jsonl", [{"text": KNOWN}])
    directory, folder = write(tmp_path / "tokenizer", wordpiece(last=True, more=66_000)), tmp_path / "shards"
    preprocess([str(corpus)], directory, folder)
    tokenizer, shards = load_tokenizer(directory), ShardSet(folder)
    assert tokenizer.vocab_size % 64
    assert min(tokenizer.vocabulary.special) == tokenizer.vocab_size - 5
    assert shards.token_dtype == "int32"
    assert shards.read(0)[0].tolist() == tokenizer.encode(KNOWN)
    assert not list(find_faults(folder, tokenizer=tokenizer, source=[str(corpus)]))


def test_what_cannot_be(write_lines: Callable, tmp_path: Path) -> None:
    directory = write_kind(tmp_path / "tokenizer", "wordpiece")
    with pytest.raises(InputError, match=r"no document with text \({'no_tokens': 1}\)"):
        preprocess([str(write_lines("c.jsonl", [{"text": "\x01"}]))], directory, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
    settings = directory / "tokenizer_config.json"
    settings.write_text('{"mask_token": "[MUSK]"}', encoding="utf-8")
    raw = (directory / "tokenizer.json").read_text(encoding="utf-8")
    (directory / "tokenizer.json").write_text(raw.replace("[MASK]", "[MUSK]"), encoding="utf-8")
    assert load_tokenizer(directory).vocabulary.mask_id == 4
    settings.unlink()
    with pytest.raises(
        ConfigError, match=r"no token is its MASK; name one of its tokens as mask_token in .*_config\.j"
    ):
        preprocess([str(write_lines("d.jsonl", [{"text": KNOWN}]))], directory, tmp_path / "shards")
