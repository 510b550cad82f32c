"""`merge`: several shard sets of one tokenizer -> one set, its files linked or copied, its shards renumbered."""

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmbert.data.shards.layout import SHARD_SUFFIXES
from cmbert.data.shards.manifest import MANIFEST_FILE, write_manifest
from cmbert.data.shards.shard_set import ShardSet
from cmbert.errors import ShardError
from cmbert.files.folders import building
from data_tools.encoding.manifest import SEAL, Tally, decontamination, seal, sealed, whole_manifest
from data_tools.outputs import is_done


def merge(directories: Sequence[Path], output: Path) -> None:
    """Join shard sets into `output`, or say that it is there already.

    Raises ShardError when a set is torn or differs from the first in tokenizer, normaliser or word dictionary.
    """
    manifests = [whole_manifest(directory) for directory in directories]  # opening a set checks its files' sizes
    for directory, manifest in zip(directories, manifests, strict=True):
        ShardSet(directory).check_indexes()
        if manifest.get(SEAL) != seal(manifest):
            raise ShardError(
                f"{directory / MANIFEST_FILE}: changed since it was written; remove the set and preprocess again"
            )
        check_same_kind(directories[0], manifests[0], directory, manifest)
    settings = {"merged": [manifest[SEAL] for manifest in manifests]}
    if is_done(output, MANIFEST_FILE, settings):
        print(f"{output}: done already, from the same shard sets")
        return
    tally, entries = Tally(), list[dict[str, Any]]()
    with building(output) as aside:
        for directory, manifest in zip(directories, manifests, strict=True):
            tally.add(Tally.from_manifest(manifest))
            for shard in manifest["shards"]:
                name = f"{len(entries):05d}"
                for suffix in SHARD_SUFFIXES:
                    link_or_copy(directory / f"{shard['name']}.{suffix}", aside / f"{name}.{suffix}")
                entries.append({**shard, "name": name})
        about = {**tally.as_manifest(), **decontamination(found.get("decontamination") for found in manifests)}
        kind = {key: manifests[0][key] for key in ("tokenizer", "segmenter", "normalizer")}
        write_manifest(aside, sealed({**kind, **about, "shards": entries, "settings": settings}))
    print(f"{output}: {len(entries)} shards, {tally.total('documents'):,} documents, {tally.total('tokens'):,} tokens")


def check_same_kind(first: Path, wanted: dict[str, Any], directory: Path, manifest: dict[str, Any]) -> None:
    """Raise ShardError unless the two sets' tokens and units mean the same."""
    for what, found, expected in (
        ("tokenizer", manifest["tokenizer"], wanted["tokenizer"]),
        ("normaliser", manifest["normalizer"], wanted["normalizer"]),
        ("word dictionary", manifest["segmenter"]["dictionary_hash"], wanted["segmenter"]["dictionary_hash"]),
    ):
        if found != expected:
            raise ShardError(f"{directory}: its {what} is not that of {first}; preprocess one of them again")


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or a copy where the two places are on different file systems."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP):
            raise
        shutil.copyfile(source, target)
