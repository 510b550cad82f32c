"""`preprocess`: documents -> shards of token ids with word units.

The input is cut into tasks. A task's output, a part, appears by one rename in `.OUTPUT.parts`; kill anything at any
moment, and the same command does only what is missing. The last step joins the parts into shards. The same bytes come
out for any number of workers, MPI ranks or array jobs, and for the same command at work twice: who is later finds the
set made, also while the other takes the parts away.
"""

import errno
import functools
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cmbert.data.shards.layout import token_dtype
from cmbert.data.shards.manifest import MANIFEST_FILE, write_manifest
from cmbert.data.shards.writer import ShardWriter
from cmbert.errors import ConfigError, InputError, ShardError
from cmbert.files.folders import asides, building, publish_directory, remove
from cmbert.files.operations import new_digest
from cmbert.progress import Progress
from cmbert.tokenizer import load_tokenizer
from data_tools.defaults import SHARD_TOKENS, TXT_DOCUMENTS
from data_tools.encoding.encode import NOT_ENCODABLE, DocumentEncoder, batches
from data_tools.encoding.manifest import Tally, sealed, whole_manifest
from data_tools.encoding.segment import segmenter
from data_tools.input.announcement import announced_files
from data_tools.input.document import Document
from data_tools.input.readers import DocumentReader, reading_options
from data_tools.input.tasks import InputTask, plan_tasks
from data_tools.outputs import describe_inputs, is_done, naming
from data_tools.preprocessing.assemble import assemble
from data_tools.preprocessing.description import Made, decontaminated, describe, say_done
from data_tools.runner import Share, Workers
from data_tools.storage.files import InputFile

PART_SHARD = "part"  # name of the one shard of a part
MADE_OF = "documents_blake2b"  # in a part's manifest


@dataclass(frozen=True)
class Work:
    """One task with all that a worker, perhaps on another machine, needs to do it."""

    task: InputTask
    part: Path
    tokenizer_directory: Path
    segmenter_name: str
    how: dict[str, Any]
    """How its text is read, as DocumentReader takes it."""
    former: Path | None = None
    """A part of the same byte ranges, made when a file had another content or time."""


def preprocess(
    inputs: Sequence[str],
    tokenizer_directory: Path,
    output: Path,
    *,
    segmenter_name: str = "auto",
    text_key: str = "text",
    on_bad_line: str = "fail",
    txt_document: str = TXT_DOCUMENTS[0],
    shard_tokens: int = SHARD_TOKENS,
    workers: Workers | None = None,
    share: Share | None = None,
) -> None:
    """Make the shard set `output`, or say that it is there already; with `share`, only that share of its parts.

    Raises InputError for unusable text, ConfigError for a wrong tokenizer or an output made with other settings,
    ShardError for a damaged part.
    """
    workers = workers or Workers()
    files = announced_files(inputs, txt_document)
    tokenizer = load_tokenizer(tokenizer_directory)
    kind = describe(tokenizer, segmenter(segmenter_name))
    options = reading_options(text_key, on_bad_line, txt_document)
    described = dict(zip(files, describe_inputs(files), strict=True))
    settings = {"inputs": list(described.values()), **kind, **options, "shard_tokens": shard_tokens}
    parts_directory = output.with_name(f".{output.name}.parts")
    if is_done(output, MANIFEST_FILE, settings):
        remove(parts_directory)  # a kill may have come between the rename of the set and the end
        print(f"{output}: done already, with the same settings; to make it again, remove it first")
        return
    planned = plan_tasks(files, txt_document)
    tasks = {parts_directory / part_name(task, {**kind, **options}, described): task for task in planned}
    parts, name = list(tasks), kind["segmenter"]["name"]  # "auto" is settled once
    work = [Work(task, part, tokenizer_directory, name, options) for part, task in tasks.items()]
    try:
        if share:
            make_parts(work[share.number :: share.num_jobs], workers, output)
            done = f"share {share.number} of {share.num_jobs} is done"
            print(f"{output}: {done}; when all are, run it without --num-tasks and --task-index")
            return
        made = make_parts(work, workers, output)
        tally, encoders = sum_parts(parts)
        if not tally.total("documents"):
            shutil.rmtree(parts_directory)
            raise InputError(f"{', '.join(inputs)}: no document with text ({dict(tally.skipped)})")
        with building(output) as aside:
            entries = assemble(parts, aside, shard_tokens, workers)
            counts = {**tally.as_manifest(), "encoder": ", ".join(encoders), "shards": entries, "settings": settings}
            write_manifest(aside, sealed({**kind, **counts, **decontaminated(files)}))
    except (OSError, ShardError, ConfigError):
        if not is_done(output, MANIFEST_FILE, settings):
            raise
        print(f"{output}: made by another job meanwhile, with the same settings")
    else:
        for left in asides(output):  # of other jobs: nobody needs what they build any more
            remove(left)
        say_done(output, tally, made)
    shutil.rmtree(parts_directory, ignore_errors=True)  # another job may still write there; it does the same at its end


def part_name(task: InputTask, settings: dict[str, Any], described: dict[InputFile, dict[str, Any]]) -> str:
    """Return the name of a task's part, STEM.MARK: the mark is another one when one of its own files is."""
    inputs = [described[span.path] for span in task.ranges]
    return f"{task.identity(settings)}.{task.identity({**settings, 'inputs': inputs})}"


def stem(name: str) -> str:
    """Return what the parts of the same byte ranges and settings have in common."""
    return name.split(".")[0]


def make_parts(work: Sequence[Work], workers: Workers, output: Path) -> Made:
    """Make the parts that are missing."""
    if not work:
        return Made(0, 0, 0.0)
    directory = work[0].part.parent
    directory.mkdir(parents=True, exist_ok=True)
    there = set(os.listdir(directory))
    formers = {stem(name): directory / name for name in there}
    missing = [replace(item, former=formers.get(stem(item.part.name))) for item in work if item.part.name not in there]
    total, left = (sum(item.task.num_bytes for item in items) / 1e6 for items in (work, missing))
    if len(missing) < len(work):
        print(f"{output}: going on, {len(work) - len(missing)} of {len(work)} parts are there")
    started, text_bytes, tokens = time.monotonic(), 0, 0
    progress = Progress("preprocess", total, "MB", done=total - left)
    try:
        for num_bytes, tally in workers.map_unordered(make_part, missing):
            text_bytes += tally.total("text_bytes")
            tokens += tally.total("tokens")
            progress.advance(num_bytes / 1e6, note=f"{tokens:,} tokens")
            if (output / MANIFEST_FILE).is_file():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(output))
    finally:
        progress.close()
        remove_if_empty(directory)
    return Made(len(missing), text_bytes, time.monotonic() - started)


def remove_if_empty(directory: Path) -> None:
    """Remove a directory unless it is gone or in use."""
    try:
        directory.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
            raise


def make_part(work: Work) -> tuple[int, Tally]:
    """Do one task, publish its part; return the task's bytes and the part's counts."""
    if tally := adopt_former(work):
        return work.task.num_bytes, tally
    encoder = _encoder(work.tokenizer_directory, work.segmenter_name)
    reader, digest = reader_of(work), new_digest()
    # A name of this process's own: a job that was thought dead may still be at the same task.
    aside = work.part.with_name(f".{work.part.name}.{socket.gethostname()}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)  # another job may have made the set and taken the parts away
    try:
        with naming(work.part.parent):
            writer, tally = ShardWriter(aside, PART_SHARD, token_dtype(encoder.tokenizer.vocab_size)), Tally()
            for batch in hashed(reader, digest):
                encoded = encoder(batch)
                if encoded.refused and work.how["on_bad_line"] == "fail":
                    raise not_encodable(work, *encoded.refused[0])
                if encoded.refused:
                    tally.skipped[NOT_ENCODABLE] += len(encoded.refused)
                writer.append(encoded.tokens, encoded.lengths, encoded.unit_starts)
                tally.add(encoded.tally)
            tally.skipped.update(reader.skipped)
            kind = {**describe(encoder.tokenizer, encoder.segmenter), "encoder": encoder.encoder.name}
            kind[MADE_OF] = digest.hexdigest()
            write_manifest(aside, sealed({**kind, **tally.as_manifest(), "shards": [writer.close()]}))
            try:
                publish_directory(aside, work.part)
            except OSError:
                if not work.part.exists():  # else another worker was faster
                    raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return work.task.num_bytes, tally


def reader_of(work: Work) -> DocumentReader:
    """Return the reader of a task's documents."""
    return DocumentReader(work.task.ranges, **work.how)


def hashed(reader: DocumentReader, digest: hashlib.blake2b) -> Iterator[list[Document]]:
    """Yield the documents in batches; `digest` takes in what a part is made of: sources, texts and what is skipped."""
    for batch in batches(reader):
        digest.update("\0".join([field for document in batch for field in (document.source, document.text)]).encode())
        yield batch
    digest.update(json.dumps(reader.skipped, sort_keys=True).encode())


def adopt_former(work: Work) -> Tally | None:
    """Rename a former part if its documents are those of today, and return its counts: a `touch` is no edit.

    Reading is several times as fast as making the part again.
    """
    if work.former is None:
        return None
    digest = new_digest()
    for _ in hashed(reader_of(work), digest):
        pass
    try:
        manifest = whole_manifest(work.former)
        if manifest.get(MADE_OF) != digest.hexdigest():
            return None
        work.former.rename(work.part)
    except (ShardError, FileNotFoundError):  # torn, or another job was faster: it is made as if it had never been there
        return None
    return Tally.from_manifest(manifest)


def not_encodable(work: Work, document: Document, said: str) -> InputError:
    """Return the error that names a document which no encoder takes; its file is looked up only now."""
    files = (span.path for span in work.task.ranges if document in DocumentReader([span], **work.how))
    return InputError(
        f"{next(files)}: no encoder takes document {document.id} ({said}); --on-bad-line skip counts such documents"
    )


@functools.lru_cache(maxsize=1)  # once per worker process: dictionaries take a second to load
def _encoder(tokenizer_directory: Path, segmenter_name: str) -> DocumentEncoder:
    return DocumentEncoder(tokenizer_directory, segmenter_name)


def sum_parts(parts: Sequence[Path]) -> tuple[Tally, list[str]]:
    """Return the counts of all parts together, and the encoders that made them."""
    tally, encoders = Tally(), set()
    for part in parts:
        manifest = whole_manifest(part)
        tally.add(Tally.from_manifest(manifest))
        encoders.add(manifest["encoder"])
    return tally, sorted(encoders)
