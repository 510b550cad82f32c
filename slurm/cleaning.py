"""For chain.py: which texts are still to be made of raw ones, how, and what is held out of them before."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cmbert.data.shards.layout import is_shard_set
from cmbert.errors import InputError
from data_tools.clean.config import CleanConfig, load_clean_config


class Corpus(NamedTuple):
    """The text of a shard set."""

    text: Path
    shards: Path
    is_sharded: bool

    @classmethod
    def of(cls, text: Path, shards: Path) -> "Corpus":
        """Return what is there of a shard set; one that left its parts behind is not done."""
        return cls(text, shards, is_shard_set(shards) and not (text.exists() and is_left(shards, "parts")))

    @property
    def is_cleaned(self) -> bool:
        """Whether its text is there, or was when its shards were made."""
        return self.is_sharded or self.text.exists()


class Cleaning(NamedTuple):
    """One corpus to be cleaned."""

    name: str
    raw: Path
    config: Path
    text: Path
    num_passes: int
    """That `data_tools clean --against` has."""


def plan_cleaning(recipes: Path, raws: Path, corpora: Sequence[Corpus], heldout: Path) -> list[Cleaning]:
    """Return what is to be cleaned, with texts held out in `heldout` before.

    Raises InputError if raw text or its recipe is missing; or if some corpora were cleaned without `heldout`: what is
    held out now could stand in them.
    """
    cleaned = [corpus for corpus in corpora if corpus.is_cleaned]
    missing = [corpus for corpus in corpora if not corpus.is_cleaned]
    unfinished = [
        corpus
        for corpus in cleaned
        if not corpus.is_sharded and is_left(corpus.text, "clean") and (raws / corpus.text.name).exists()
    ]
    for corpus in missing:
        if not (raws / corpus.text.name).exists():
            raise InputError(
                f"{corpus.text}: missing, {corpus.shards} is made from it; clean it into there, name another folder of "
                f"texts, or put its raw text into {raws / corpus.text.name}, and it is cleaned first"
            )
    if missing and cleaned and not heldout.exists():
        raise InputError(
            f"{heldout}: missing, and {cleaned[0].text.name} was cleaned without it: what is held out now could stand "
            "there; move its text and shards away, and all are cleaned anew, or put held-out text there"
        )
    return [plan_corpus(recipes, raws, corpus.text) for corpus in corpora if corpus in missing + unfinished]


def is_left(output: Path, suffix: str) -> bool:
    """Return whether the folder in which `output` was made is there still: who removed it was killed."""
    return output.with_name(f".{output.name}.{suffix}").exists()


def plan_corpus(recipes: Path, raws: Path, text: Path) -> Cleaning:
    """Return how one text is made, by its recipe in the folder `recipes` or in the one above it."""
    name = f"{text.name}.toml"
    found = [folder / "clean" / name for folder in (recipes, recipes.parent)]
    config = next((path for path in found if path.is_file()), None)
    if config is None:
        raise InputError(f"{found[0]}: missing, it says how {raws / text.name} is cleaned; see recipes/large/clean")
    return Cleaning(text.name, raws / text.name, config, text, num_passes(load_clean_config(config)))


def to_hold_out(corpora: Sequence[Corpus], cleanings: Sequence[Cleaning], heldout: Path) -> list[Cleaning]:
    """Return those of which texts are held out first: all before the first one is cleaned, none any more after that."""
    if any(corpus.is_cleaned for corpus in corpora):
        return []
    texts = [(cleaning, heldout / cleaning.name) for cleaning in cleanings]
    return [cleaning for cleaning, text in texts if not text.exists() or is_left(text, "clean")]


def num_passes(config: CleanConfig) -> int:
    """Return how many passes `clean --against` has: two for what is held out, filter, write, two for duplicates."""
    return 6 if config.duplicates.any else 4
