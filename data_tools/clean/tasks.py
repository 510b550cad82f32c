"""The tasks of each pass. Each writes its files whole and returns its record, which becomes its marker."""

from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from cmbert.files.operations import doing
from data_tools.clean.drops import Drops
from data_tools.clean.duplicates.bands import EARLIER, Comparison, bands_to_compare, compare, plan_comparisons
from data_tools.clean.duplicates.clusters import find_groups
from data_tools.clean.duplicates.minhash import Signer, text_key
from data_tools.clean.duplicates.signatures import (
    FILE,
    WHOLE_TEXT,
    num_bands,
    num_documents,
    offsets_of,
    read_keys,
    save_array,
    write_signatures,
)
from data_tools.clean.judge import Judge, is_held_out
from data_tools.clean.setup import Groups, Item, Setup, read_marker
from data_tools.clean.texts import (
    OUTPUT_LEVEL,
    ROW,
    TEXT_FILE,
    WORK_LEVEL,
    document_of_line,
    line_of,
    read_lines,
    writing_texts,
)
from data_tools.input.document import Document
from data_tools.input.readers import DocumentReader

COMPARED_CHARACTERS = 20_000  # of a sample and the text that was kept instead
KEYS_AT_ONCE = 4096  # documents
Record = dict[str, Any]


def filter_texts(item: Item) -> Record:
    """Input -> normalised texts that are worth keeping, their table and signatures."""
    setup, config = item.setup, item.setup.config
    reader = DocumentReader(item.ranges, **config.reading())
    judge = Judge(
        config,
        only_heldout=setup.only_heldout,
        held_out_texts=setup.held_out_texts,
        evaluation_texts=setup.evaluation_texts,
    )
    sign = Signer(config.duplicates) if config.duplicates.near else None
    sources: dict[str, int] = {}
    rows: list[tuple[int, bool, int, int]] = []
    keys: list[np.ndarray] = []
    bands = num_bands(config.duplicates)
    with writing_texts(setup.text_file(item.rank), WORK_LEVEL) as writer:
        for document in filter(None, map(judge, reader)):
            source = sources.setdefault(document.source, len(sources))
            text, encoded = document.text, document.text.encode("utf-8")
            held_out = setup.heldout is not None and is_held_out(text, config.heldout_share)
            rows.append((source, held_out, len(text), len(encoded)))
            if setup.config.duplicates.any:
                if len(rows) % KEYS_AT_ONCE == 1:
                    keys.append(np.empty((KEYS_AT_ONCE, bands), np.uint64))
                own = keys[-1][(len(rows) - 1) % KEYS_AT_ONCE]
                own[WHOLE_TEXT] = text_key(encoded)
                if sign:
                    own[WHOLE_TEXT + 1 :] = sign(text)
            writer.write(line_of(document))
    save_array(setup.table_file(item.rank), np.array(rows, ROW))
    if setup.config.duplicates.any:
        whole = np.concatenate([np.empty((0, bands), np.uint64), *keys])[: len(rows)]
        write_signatures(setup.signature_file(item.rank), whole)
    return {"sources": list(sources), "skipped": reader.skipped, **judge.as_record()}


class Compared(NamedTuple):
    """A task of the comparison."""

    setup: Setup
    offsets: np.ndarray
    """Documents before each task's, and of all; counted once for all comparisons."""
    comparison: Comparison


def comparisons(setup: Setup, num_tasks: int) -> list[Compared]:
    """Return the tasks that compare what the filter has left."""
    files = [setup.signature_file(rank) for rank in range(num_tasks)]
    offsets = offsets_of(files)
    documents = int(offsets[-1]) + sum(map(num_documents, setup.earlier))
    bands = bands_to_compare(setup.config.duplicates.exact, num_bands(setup.config.duplicates))
    return [Compared(setup, offsets, task) for task in plan_comparisons(documents, bands)]


def compare_signatures(item: Compared) -> Record:
    """Signatures -> pairs with a key in common."""
    setup = item.setup
    files = [setup.signature_file(rank) for rank in range(len(item.offsets) - 1)]
    entries = compare(files, item.offsets, setup.earlier, item.comparison, setup.work / "pairs")
    return {"entries": entries}


def cluster(items: list[Compared]) -> Record:
    """Pairs -> groups of duplicates, of all documents."""
    setup, offsets = items[0].setup, items[0].offsets
    folder = setup.work / "cluster"
    pairs = ((setup.work / "pairs" / item.comparison.file, item.comparison.band == WHOLE_TEXT) for item in items)
    roots, copies = find_groups(pairs, int(offsets[-1]))
    for name, array in zip(Groups._fields, (offsets, roots, copies), strict=True):
        save_array(folder / f"{name}.npy", array)
    return {"documents": int(offsets[-1])}


class Fates(NamedTuple):
    """What becomes of each text of a task, shape (documents,)."""

    reasons: np.ndarray
    """Why it is dropped as a duplicate, "" where it stays."""
    roots: np.ndarray
    """The number of the first document of its group."""


def fates(item: Item, documents: int) -> Fates:
    """Return what `cluster` found of a task's texts."""
    reasons = np.full(documents, "", "U20")
    if not item.setup.config.duplicates.any:
        return Fates(reasons, np.arange(documents))
    groups = Groups.of(item.setup.work)
    first = int(groups.offsets[item.rank]) + 1
    roots, copies = (np.array(array[first : first + documents]) for array in (groups.roots, groups.copies))
    reasons[roots != np.arange(first, first + documents)] = "near_duplicate"
    reasons[copies] = "exact_duplicate"
    reasons[roots == EARLIER] = "earlier_duplicate"
    return Fates(reasons, roots)


def write_texts(item: Item) -> Record:
    """Texts -> those that stay, a share of them aside; with the signatures of both."""
    setup, rank = item.setup, item.rank
    with doing("read", setup.table_file(rank)):
        table = np.load(setup.table_file(rank))
    found, drops = fates(item, len(table)), Drops()
    stays = found.reasons == ""
    with ExitStack() as stack:
        folders = [setup.texts, *([setup.heldout] if setup.heldout else [])]
        writers = [
            stack.enter_context(writing_texts(folder / TEXT_FILE.format(rank), OUTPUT_LEVEL)) for folder in folders
        ]
        rows = zip(found.reasons.tolist(), found.roots.tolist(), table["held_out"].tolist(), strict=True)
        for line, (reason, root, is_aside) in zip(read_lines(setup.text_file(rank)), rows, strict=True):
            if reason:
                drop_duplicate(document_of_line(line), reason, root, drops)
            else:
                writers[is_aside].write(line)
    if setup.signatures is not None:
        write_signatures(setup.signatures / FILE.format(rank), read_keys(setup.signature_file(rank))[stays])
    sources = read_marker(setup.work, "filter", rank)["sources"]
    return {**count_kept(table[stays], sources), "dropped": drops.as_record()}


def drop_duplicate(document: Document, reason: str, root: int, drops: Drops) -> None:
    """Count a duplicate; keep of a near one what is needed to show what was kept instead."""
    if drops.count(document.source, reason):
        near = reason == "near_duplicate"
        known = {"root": root, "whole": document.text[:COMPARED_CHARACTERS]} if near else {}
        drops.sample(document, reason, **known)


def count_kept(table: np.ndarray, sources: list[str]) -> Record:
    """Return documents, characters and bytes of what stays by source, and the documents held out."""
    kept: dict[str, dict[str, int]] = {}
    held_out: dict[str, int] = {}
    for number, source in enumerate(sources):
        own = table[table["source"] == number]
        trained, aside = own[~own["held_out"]], int(np.count_nonzero(own["held_out"]))
        if len(trained):
            sums = {name: int(trained[name].sum(dtype=np.int64)) for name in ("characters", "bytes")}
            kept[source] = {"documents": len(trained), **sums}
        if aside:
            held_out[source] = aside
    return {"kept": kept, "held_out": held_out}
