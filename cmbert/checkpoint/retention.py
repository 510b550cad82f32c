"""Which checkpoints stay, and the removal of the others: by a rename first, so that a kill leaves no half one."""

import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cmbert.checkpoint.files import UNIVERSAL_SUFFIX, list_checkpoints
from cmbert.checkpoint.state import readable_states
from cmbert.files.operations import doing, rename

REMOVED_SUFFIX = ".removed"  # of one that is being removed: a kill meanwhile leaves no half checkpoint


class Retention(NamedTuple):
    """Which checkpoints stay."""

    keep_newest: int
    keep_every_tokens: int
    """The first at or after each multiple stays for good; 0 = none."""


def prune(root: Path, retention: Retention, step: int, lease: int) -> None:
    """Remove checkpoints up to `step`, the newest, that need not stay, and what killed runs have left.

    lease: number of who asks; what owners of higher ones build is theirs. One that nobody may write to (chmod -R a-w)
    stays. Raises the first OSError when all else is done.
    """
    states = {path: state for path, state in readable_states(list_checkpoints(root)).items() if state.step <= step}
    permanent = [path for path, state in states.items() if not state.ephemeral]
    keep = {*permanent[-retention.keep_newest :], *sorted(states, key=lambda path: states[path].step)[-1:]}
    if retention.keep_every_tokens:
        first_of: dict[int, Path] = {}
        for path in permanent:
            first_of.setdefault(states[path].tokens // retention.keep_every_tokens, path)
        keep |= {path for multiple, path in first_of.items() if multiple > 0}
    problems: list[OSError] = []
    for path in sorted(states.keys() - keep):
        if not _is_protected(path):
            _attempt(partial(rename, path, path.with_name(f".{path.name}{REMOVED_SUFFIX}")), problems)
    for suffix in (".partial", UNIVERSAL_SUFFIX, REMOVED_SUFFIX):
        for left in root.glob(f".step_*{suffix}"):
            owner = re.fullmatch(r"\.step_\d+\.(\d+)\.partial", left.name)
            if owner is None or int(owner[1]) <= lease:
                _attempt(partial(_remove, left), problems)
    if problems:
        raise problems[0]


def _is_protected(path: Path) -> bool:
    """Return whether somebody took the right to write to a checkpoint away, from everybody or from us."""
    return not path.stat().st_mode & 0o222 or not os.access(path, os.W_OK)


def _remove(path: Path) -> None:
    with doing("remove", path):
        shutil.rmtree(path)


def _attempt(action: Callable[[], object], problems: list[OSError]) -> None:
    try:
        action()
    except OSError as error:
        problems.append(error)
