"""Shard sets and Megatron pairs, each file damaged while the others are right."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmbert.data.shards.manifest import read_manifest, write_manifest
from cmbert.data.shards.shard_set import ShardSet
from cmbert.data.sources import open_shards, prove_ids
from cmbert.errors import ShardError
from cmbert.files.operations import hash_file
from cmbert.tokenizer import Tokenizer
from data_tools.encoding.manifest import sealed, whole_manifest
from data_tools.preprocessing.inspection import describe
from data_tools.preprocessing.preprocess import preprocess
from data_tools.preprocessing.verify import find_faults
from tests.fuzz.doors import accepts_or_says, damaged_bytes, damaged_values, inputs_at_this_door, json_bytes

TEXTS = ["他在北京大学读书。", "今天天气很好，我们去公园。", "第一行 第二行 😀"]
SUFFIXES = ("bin", "idx", "words")
SET: dict[str, bytes] = {}  # name -> contents of a sound set, made once; hypothesis asks before there is a fixture


@pytest.fixture(scope="module", autouse=True)
def sound(tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("sound")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    preprocess([str(corpus)], tokenizer_directory, folder / "shards")
    SET.update({path.name: path.read_bytes() for path in (folder / "shards").iterdir()})


def lay_out(folder: Path, name: str, contents: bytes) -> Path:
    """Write the sound set with one file of it replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file, raw in SET.items():
        (folder / file).write_bytes(contents if file == name else raw)
    return folder


def read_all(shards: ShardSet) -> None:
    """Use every token as training does."""
    shards.check_documents(0, shards.num_documents)
    lengths = shards.document_lengths()
    for document in range(shards.num_documents):
        tokens, units = shards.read(document)
        assert len(tokens) == len(units) == lengths[document]
    assert lengths.sum() == shards.num_tokens


def use_set(folder: Path, tokenizer: Tokenizer) -> Callable[[], None]:
    def use() -> None:
        faults = list(find_faults(folder))
        assert all(len(fault.splitlines()) == 1 and str(folder) in fault for fault in faults)
        list(find_faults(folder, quick=True))
        accepts_or_says(lambda: describe(folder), str(folder))
        read_all(open_shards(folder, tokenizer))

    return use


@given(data=st.data(), suffix=st.sampled_from(SUFFIXES))
@inputs_at_this_door(share=0.5)
def test_a_file_that_the_manifest_does_not_know(
    tmp_path: Path, tokenizer: Tokenizer, data: st.DataObject, suffix: str
) -> None:
    raw = data.draw(damaged_bytes(SET[f"00000.{suffix}"]))
    folder = lay_out(tmp_path / "set", f"00000.{suffix}", raw)
    is_sound = accepts_or_says(lambda: read_all(open_shards(folder, tokenizer)) or True, str(folder))
    assert bool(is_sound) == (raw == SET[f"00000.{suffix}"])
    assert bool(list(find_faults(folder))) == (raw != SET[f"00000.{suffix}"])


@given(data=st.data(), suffix=st.sampled_from(SUFFIXES))
@inputs_at_this_door(share=0.5)
def test_a_file_that_the_manifest_vouches_for(
    tmp_path: Path, tokenizer: Tokenizer, data: st.DataObject, suffix: str
) -> None:
    raw = data.draw(damaged_bytes(SET[f"00000.{suffix}"]))
    folder = lay_out(tmp_path / "set", f"00000.{suffix}", raw)
    manifest = json.loads(SET["manifest.json"])
    entry = manifest["shards"][0]
    entry["bytes"][suffix], entry["blake2b"][suffix] = len(raw), hash_file(folder / f"00000.{suffix}")
    del entry["crc32"]  # as older versions wrote it: nothing tells a flipped bit but sense
    if data.draw(st.booleans()) and suffix == "bin":
        entry["tokens"] = len(raw) // 2
    write_manifest(folder, sealed(manifest))
    accepts_or_says(use_set(folder, tokenizer), str(folder))


def vouched_for(value: Any) -> bytes:
    """Return a manifest with the seal of what it says, where it can have one."""
    with contextlib.suppress(UnicodeEncodeError, TypeError):
        return json_bytes(sealed(value))
    return json_bytes(value)


@given(data=st.data())
@inputs_at_this_door()
def test_manifests(tmp_path: Path, tokenizer: Tokenizer, data: st.DataObject) -> None:
    valid = json.loads(SET["manifest.json"])
    changed = st.builds(json_bytes, damaged_values(valid))
    vouched = damaged_values(valid).map(vouched_for)
    raw = data.draw(st.one_of(changed, vouched, damaged_bytes(SET["manifest.json"])))
    folder = lay_out(tmp_path / "set", "manifest.json", raw)
    accepts_or_says(lambda: read_manifest(folder), str(folder))
    accepts_or_says(lambda: whole_manifest(folder), str(folder))
    accepts_or_says(use_set(folder, tokenizer), str(folder))


def pair_of(*documents: list[list[int]]) -> tuple[bytes, bytes]:
    """Return .idx and .bin of documents of sequences of ids, from the format's description."""
    sequences = [sequence for document in documents for sequence in document]
    lengths = np.array([len(sequence) for sequence in sequences], "<i4")
    bounds = np.cumsum([0, *map(len, documents)])
    head = b"MMIDIDX\0\0" + (1).to_bytes(8, "little") + b"\x08"
    counts = len(sequences).to_bytes(8, "little") + len(bounds).to_bytes(8, "little")
    columns = lengths.tobytes() + (2 * (np.cumsum(lengths) - lengths)).astype("<i8").tobytes()
    tokens = np.array([token for sequence in sequences for token in sequence], "<u2").tobytes()
    return head + counts + columns + bounds.astype("<i8").tobytes(), tokens


PAIRS = (
    pair_of([[7, 8, 9]], [[]], [[10, 11, 12, 13]]),
    pair_of([[7, 8, 9], [5]], [], [[10, 11], [12, 13]]),
    pair_of(*([[10, 11, 12, 13]] for _ in range(9))),
)


@st.composite
def damaged_pairs(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Draw a pair with bytes or numbers of either file changed, bounds most of all."""
    index, tokens = draw(st.sampled_from(PAIRS))
    way = draw(st.sampled_from(("bounds", "numbers", "index", "tokens")))
    if way == "index":
        return draw(damaged_bytes(index)), tokens
    if way == "tokens":
        return index, draw(damaged_bytes(tokens))
    if way == "numbers":
        place = draw(st.integers(0, len(index) - 1))
        number = draw(st.sampled_from((-1, 0, 1, 2, 2**31, 2**32, 2**61, 2**63 - 1, -(2**63))))
        changed = index[:place] + number.to_bytes(8, "little", signed=True) + index[place + 8 :]
        return changed[: len(index)], tokens
    count = int.from_bytes(index[18:26], "little")
    numbers = st.one_of(st.integers(-1, count + 1), st.sampled_from((2**63 - 1, -2, -(2**63), 2**62)))
    bounds = draw(st.one_of(st.lists(numbers, max_size=12), st.lists(numbers, max_size=12).map(sorted)))
    ends = [0, *bounds, count] if draw(st.booleans()) else bounds
    raw = index[:26] + len(ends).to_bytes(8, "little") + index[34 : 34 + 12 * count]
    return raw + np.array(ends, "<i8").tobytes(), tokens


@pytest.mark.filterwarnings("ignore:.*without word units")
@given(pair=damaged_pairs())
@inputs_at_this_door()
def test_megatron_pairs(tmp_path: Path, tokenizer: Tokenizer, pair: tuple[bytes, bytes]) -> None:
    prefix = tmp_path / "pair"
    for suffix, raw in zip(("idx", "bin"), pair, strict=True):
        prefix.with_name(f"pair.{suffix}").write_bytes(raw)

    def use() -> Any:
        shards = open_shards(prefix, tokenizer)
        prove_ids(shards, tokenizer)
        read_all(shards)
        return shards

    shards = accepts_or_says(use, str(prefix))
    if shards is not None:  # then it holds each token of the .bin once
        found = np.concatenate([shards.document_tokens(number) for number in range(shards.num_documents)])
        assert found.tobytes() == pair[1]
    else:
        with pytest.raises(ShardError):
            use()
