"""Duplicates out of core: pairs and groups against naive ones, sets of earlier signatures, recall on planted copies."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cmbert.errors import ConfigError, InputError
from data_tools.clean.clean import clean
from data_tools.clean.config import CleanConfig, DuplicatesConfig
from data_tools.clean.duplicates import bands, signatures
from data_tools.clean.duplicates.bands import EARLIER, bands_to_compare, compare, pairs_of, plan_comparisons
from data_tools.clean.duplicates.clusters import find_groups
from data_tools.clean.duplicates.minhash import Signer, similarity
from data_tools.clean.duplicates.signatures import (
    CELLS,
    is_set,
    num_documents,
    offsets_of,
    read_cells,
    read_keys,
    save_array,
    signature_bytes,
    write_signatures,
)
from data_tools.input.listing import input_files
from data_tools.input.readers import DocumentReader, whole_files


def drawn_keys(documents: int, num_bands: int, seed: int = 0) -> np.ndarray:
    """Return keys of which many are equal, in all cells."""
    draw = np.random.default_rng(seed)
    return draw.choice(draw.integers(0, 2**64, documents, np.uint64), (documents, num_bands))


def test_signatures_are_read_as_written(tmp_path: Path) -> None:
    keys, path = drawn_keys(1_000, 3), tmp_path / "00000.signatures"
    write_signatures(path, keys)
    assert num_documents(path) == 1_000
    assert (read_keys(path) == keys).all()
    assert path.stat().st_size == (2 + 3 * 257) * 8 + 1_000 * signature_bytes(DuplicatesConfig(num_buckets=2))
    for band, (first, last) in itertools.product(range(3), ((0, CELLS), (17, 90), (5, 5))):
        found = read_cells(path, band, first, last)
        assert (np.diff(found["key"].astype(object)) >= 0).all()
        inside = (keys[:, band] >> np.uint64(56) >= first) & (keys[:, band] >> np.uint64(56) < last)
        assert sorted(found["document"].tolist()) == np.flatnonzero(inside).tolist()
        assert (keys[found["document"], band] == found["key"]).all()
    write_signatures(tmp_path / "empty", keys[:0])
    assert num_documents(tmp_path / "empty") == len(read_keys(tmp_path / "empty")) == 0
    for torn in (b"", path.read_bytes()[:-1], path.read_bytes()[:9]):
        path.write_bytes(torn)
        with pytest.raises(InputError, match=r"00000\.signatures: damaged or truncated"):
            num_documents(path)


def test_pairs_are_those_of_every_document_with_every_other() -> None:
    keys, documents = drawn_keys(300, 1)[:, 0], np.arange(1, 301, dtype=np.uint32)
    documents[:60] = EARLIER
    found = pairs_of(keys, documents)
    naive = {}
    for key, document in zip(keys.tolist(), documents.tolist(), strict=True):
        naive.setdefault(key, []).append(document)
    stars = {(same[0], other) for same in naive.values() for other in same[1:] if other != EARLIER}
    assert set(map(tuple, found.tolist())) == stars
    assert (found[:, 0] < found[:, 1]).all()
    assert len(pairs_of(keys[:0], documents[:0])) == 0


def naive_groups(keys: np.ndarray) -> list[int]:
    """Return the first document of each one's group, by looking again and again."""
    roots = list(range(len(keys)))
    changed = True
    while changed:
        changed = False
        for column in keys.T.tolist():
            least: dict[int, int] = {}
            for document, key in enumerate(column):
                least[key] = min(least.get(key, len(keys)), roots[document])
            for document, key in enumerate(column):
                changed |= least[key] < roots[document]
                roots[document] = min(roots[document], least[key])
    return roots


@pytest.mark.parametrize("most_entries", [1 << 25, 64])
def test_groups_are_those_of_a_naive_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_entries: int) -> None:
    monkeypatch.setattr(bands, "MOST_ENTRIES", most_entries)
    keys = drawn_keys(900, 3)
    keys[::3] = np.random.default_rng(1).integers(0, 2**64, keys[::3].shape, np.uint64)  # alike to none
    files = [tmp_path / f"{number}.signatures" for number in range(4)]
    for path, part in zip(files, np.split(keys, [200, 200, 650]), strict=True):
        write_signatures(path, part)
    offsets = offsets_of(files)
    tasks = plan_comparisons(900, bands_to_compare(True, 3))
    assert len(tasks) == (3 if most_entries > 900 else 3 * 15)
    for task in tasks:
        compare(files, offsets, [], task, tmp_path)
    edges = [(tmp_path / task.file, task.band == 0) for task in tasks]
    roots, copies = find_groups(edges, 900)
    expected = naive_groups(keys)
    assert (roots[1:] - 1).tolist() == expected
    _, first = np.unique(keys[:, 0], return_index=True)
    assert set(np.flatnonzero(~copies[1:])) == set(first)
    backwards, _ = find_groups(reversed(edges), 900)
    assert (backwards == roots).all(), "the order of the pairs is no matter"
    save_array(edges[0][0], np.array([[1, 901]], np.uint32))
    with pytest.raises(InputError, match=r"damaged: it names document 901 of 900"):
        find_groups(edges, 900)
    edges[0][0].write_bytes(b"torn")
    with pytest.raises(InputError, match="remove it, and the same command makes it again"):
        find_groups(edges, 900)


def test_more_documents_than_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "num_documents", lambda _: 2**31)
    with pytest.raises(ConfigError, match=r"4,294,967,296 documents are more than one call compares.*--against those"):
        offsets_of([tmp_path, tmp_path])


def hanzi(draw: np.random.Generator, count: int) -> str:
    return "".join(map(chr, draw.integers(0x4E00, 0x4E00 + 9_000, count)))


def texts_of(folder: Path) -> list[str]:
    return [document.text for document in DocumentReader(whole_files(input_files([str(folder)])))]


def test_what_was_cleaned_before_is_not_cleaned_again(write_lines: Callable, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    first, second = ([hanzi(draw, 150) for _ in range(40)] for _ in range(2))
    near = [f"{text[:70]}，{text[70:]}" for text in first[:10]]
    old = write_lines("old.jsonl", [{"text": text} for text in first])
    new = write_lines("new.jsonl", [{"text": text} for text in [*second, *first[10:25], *near, *second[:5]]])
    config, signed = CleanConfig(source="新"), tmp_path / "signed"
    clean([str(old)], tmp_path / "a", config=config, signatures=signed / "a", heldout=tmp_path / "held")
    assert is_set(signed / "a")
    assert len(texts_of(tmp_path / "held")) > 0, "what is held out counts, too: it is not to be trained on"
    how = {"config": config, "against": [str(signed / "a")]}
    clean([str(new)], tmp_path / "b", **how, signatures=signed / "b")
    assert texts_of(tmp_path / "b") == second
    report = (tmp_path / "b" / "report.json").read_text(encoding="utf-8")
    assert '"earlier_duplicate": 25' in report
    assert '"exact_duplicate": 5' in report
    assert "kept before" in (tmp_path / "b" / "report.html").read_text(encoding="utf-8")
    both = [str(signed / name) for name in "ab"]
    with pytest.raises(InputError, match="no document is left: earlier_duplicate"):
        clean([str(new)], tmp_path / "c", config=config, against=both)
    with pytest.raises(ConfigError, match=r"signed/a: its signatures have num_buckets 14, this configuration has 10"):
        clean([str(new)], tmp_path / "c", config=CleanConfig(duplicates=DuplicatesConfig(num_buckets=10)), against=both)
    off = CleanConfig(duplicates=DuplicatesConfig(exact=False, near=False))
    with pytest.raises(ConfigError, match=r"--signatures: .* nothing is signed"):
        clean([str(new)], tmp_path / "c", config=off, signatures=signed / "c")
    with pytest.raises(ConfigError, match=r"signed/a: .* nothing is compared"):
        clean([str(new)], tmp_path / "c", config=off, against=both)
    next((signed / "a").glob("*.signatures")).unlink()
    with pytest.raises(InputError, match=r"holds signatures of 0 documents, its signatures\.json says 40"):
        clean([str(new)], tmp_path / "c", config=config, against=both)
    (signed / "a" / "signatures.json").write_text("[]")
    with pytest.raises(InputError, match=r"a/signatures\.json: .*this program did not write it"):
        clean([str(new)], tmp_path / "c", config=config, against=both)


def edited(draw: np.random.Generator, text: str, edits: int) -> str:
    """Return `text` with so many characters exchanged, each breaking the eight shingles that hold it."""
    codes = np.array(list(text))
    codes[draw.choice(len(text), edits, replace=False)] = list(hanzi(draw, edits))
    return "".join(codes)


def test_planted_copies_are_found_as_their_likeness_says() -> None:
    """Against the exact Jaccard index: found with 1 - (1 - J^8)^14, the curve of 14 bands of 8 hashes."""
    draw, signer, bins = np.random.default_rng(0), Signer(DuplicatesConfig()), np.linspace(0, 1, 11)
    found: dict[int, list[bool]] = {}
    expected: dict[int, list[float]] = {}
    for number in range(3_000):
        text = hanzi(draw, 200)
        copy = edited(draw, text, number % 30)
        likeness = similarity(text, copy, 8)
        place = min(int(np.searchsorted(bins, likeness, side="right")), 10)
        found.setdefault(place, []).append(bool((signer(text) == signer(copy)).any()))
        expected.setdefault(place, []).append(1 - (1 - likeness**8) ** 14)
    for place, hits in found.items():
        mean = float(np.mean(expected[place]))
        assert abs(np.mean(hits) - mean) < 4 * np.sqrt(max(mean * (1 - mean), 0.01) / len(hits)), bins[place - 1]
    recall = np.mean(found[10])
    assert recall > 0.99, "of copies alike by 90 % and more"
    assert np.mean(found[4]) < 0.05, "of texts alike by 30 to 40 %"
    assert not any((signer(hanzi(draw, 200)) == signer(hanzi(draw, 200))).any() for _ in range(300))
