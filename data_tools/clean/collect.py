"""The records of all tasks, summed: what the report says."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from cmbert.files.reading import read_json
from data_tools.clean.config import SAMPLE_CHARACTERS, SAMPLES
from data_tools.clean.duplicates.minhash import similarity
from data_tools.clean.setup import Groups, Setup, marker_file
from data_tools.clean.tasks import COMPARED_CHARACTERS
from data_tools.clean.texts import document_of_line, read_lines
from data_tools.input.document import Document

Samples = dict[str, dict[str, list[dict[str, Any]]]]


def collect(setup: Setup) -> dict[str, Any]:
    """Return what was kept, dropped by source and reason and removed from texts, with samples, and skipped."""
    kept: dict[str, Counter[str]] = {}
    held_out, skipped = Counter[str](), Counter[str]()
    dropped: dict[str, Counter[str]] = {}
    samples: Samples = {}
    removed: dict[str, dict[str, Any]] = {}
    for record in records(setup, "filter"):
        skipped.update(record["skipped"])
        add_drops(record["dropped"], dropped, samples)
        add_removed(record["removed"], removed)
    for record in records(setup, "write"):
        for source, counts in record["kept"].items():
            kept.setdefault(source, Counter()).update(counts)
        held_out.update(record["held_out"])
        add_drops(record["dropped"], dropped, samples)
    add_twins(setup, samples)
    found_all = {"kept": kept, "held_out": held_out.total(), "held_out_by_source": held_out, "dropped": dropped}
    return {**found_all, "skipped_lines": skipped, "samples": samples, "removed": removed}


def records(setup: Setup, name: str) -> Iterator[dict[str, Any]]:
    """Yield the records of all tasks of a pass, in order."""
    for path in sorted(marker_file(setup.work, name, 0).parent.glob("*.json")):
        yield read_json(path)


def add_drops(record: dict[str, Any], dropped: dict[str, Counter[str]], samples: Samples) -> None:
    """Add how many texts a task dropped, by source and reason, and the first samples."""
    for source, own in record["counts"].items():
        dropped.setdefault(source, Counter()).update(own)
        for reason, texts in record["samples"][source].items():
            found = samples.setdefault(source, {}).setdefault(reason, [])
            found.extend(texts[: SAMPLES - len(found)])


def add_removed(record: dict[str, Any], removed: dict[str, dict[str, Any]]) -> None:
    """Add what a task took out of texts: by source, pieces and characters of each kind, and samples of markup."""
    for source, found in record.items():
        if not found["pieces"]:
            continue
        total = removed.setdefault(source, {"pieces": Counter(), "characters": Counter(), "samples": {}})
        for count in ("pieces", "characters"):
            total[count].update(found[count])
        for kind, texts in found["samples"].items():
            own = total["samples"].setdefault(kind, [])
            own.extend(texts[: SAMPLES - len(own)])


def add_twins(setup: Setup, samples: Samples) -> None:
    """Give each sample of a near duplicate what was kept: id, text and the share of their shingles in common."""
    near = [sample for by_reason in samples.values() for sample in by_reason.get("near_duplicate", [])]
    documents = read_documents(setup, {sample["root"] for sample in near}) if near else {}
    for sample in near:
        document = documents[sample.pop("root")]
        length = setup.config.duplicates.shingle_characters
        share = similarity(sample.pop("whole"), document.text[:COMPARED_CHARACTERS], length)
        sample["twin"] = {"id": document.id, "text": document.text[:SAMPLE_CHARACTERS], "shared": round(share, 4)}


def read_documents(setup: Setup, numbers: Iterable[int]) -> dict[int, Document]:
    """Return the documents of some numbers, as `cluster` counts them; of each task as much is read as it takes."""
    offsets = Groups.of(setup.work).offsets
    found: dict[int, Document] = {}
    wanted: dict[int, list[int]] = {}
    for number in sorted(numbers):
        wanted.setdefault(int(np.searchsorted(offsets, number - 1, side="right")) - 1, []).append(number)
    for rank, own in wanted.items():
        first = int(offsets[rank]) + 1
        lines = enumerate(islice(read_lines(setup.text_file(rank)), own[-1] - first + 1), start=first)
        found |= {number: document_of_line(line) for number, line in lines if number in own}
    return found
