"""For submit_all.sh: what a folder of recipes needs and what of it is there, a line each, tabs between."""

import sys
from collections.abc import Sequence
from pathlib import Path

from cleaning import Corpus, plan_cleaning, to_hold_out

from cmbert.checkpoint.files import find_checkpoint
from cmbert.checkpoint.state import read_state
from cmbert.config.load import load_recipe
from cmbert.config.schema import Recipe
from cmbert.data.shards.shard_set import ShardSet
from cmbert.errors import ConfigError, InputError, run_command
from cmbert.runs.directory import check_belongs
from cmbert.schedule import Schedule
from cmbert.tokenizer import TOKENIZER_FILE, load_tokenizer

HELD_OUT = "heldout"  # folder of the texts that are held out, where no recipe says what it is scored on


def describe_chain(recipes: Path, texts: Path, raws: Path) -> None:
    """Print what is made, a line each: root, tokenizer, texts, shard sets and stages, with what they are made of.

    Raises ConfigError or InputError if something is missing that no job of the chain makes, or if what is there is of
    other recipes: its jobs could only fail, and what was made from it would be taken for done.
    """
    stages = [load_recipe(recipes / f"stage{number}.toml") for number in (1, 2)]
    first, second = stages
    root = Path(first.run_directory).parent
    for stage in stages:
        check_belongs(stage)
    check_order(root, first, second)
    print_line("root", root)
    heldout = second.evaluation.shards
    folders = list(dict.fromkeys(Path(source.path) for stage in stages for source in stage.data.sources))
    corpora = [Corpus.of(texts / folder.name, folder) for folder in folders]
    scored = [folder for folder in map(Path, [heldout] if heldout else []) if folder not in folders]
    sets = corpora + [Corpus.of(texts / folder.name, folder) for folder in scored]
    names = [one.shards.name for one in sets]
    if len(set(names)) < len(names):
        raise ConfigError(f"{recipes}: two shard sets have the same last name; their texts could not be told apart")
    describe_tokenizer(first, sets)
    describe_texts(recipes, raws, sets, corpora, texts / (Path(heldout).name or HELD_OUT))
    for text, folder, is_there in sets:
        print_line("shards", folder.name, folder, text, "there" if is_there else "missing")
    if heldout:
        print_line("heldout", heldout)
    for number, stage in enumerate(stages, start=1):
        print_line(f"stage{number}", recipes / f"stage{number}.toml", stage.run_directory, progress(stage))


def describe_tokenizer(recipe: Recipe, sets: Sequence[Corpus]) -> None:
    """Print the tokenizer's folder and state; if it is missing also the text that it is made of, and its size.

    Raises ConfigError if shard sets are there, and it is missing or another than theirs.
    """
    folder, size = recipe.data.tokenizer, recipe.model.vocab_size
    sharded = [one.shards for one in sets if one.is_sharded]
    if not sharded and not (Path(folder) / TOKENIZER_FILE).is_file():
        print_line("tokenizer", folder, "missing", sets[0].text, str(size))
        return
    fingerprint = load_tokenizer(folder, vocab_size=size).fingerprint
    for shards in sharded:
        if ShardSet(shards).tokenizer_fingerprint not in (None, fingerprint):
            raise ConfigError(
                f"{shards}: made with another tokenizer than {folder}; move it away, and it is made again"
            )
    print_line("tokenizer", folder, "there")


def describe_texts(recipes: Path, raws: Path, sets: Sequence[Corpus], corpora: Sequence[Corpus], heldout: Path) -> None:
    """Print of what texts are held out where, and what is cleaned; `corpora` are those of `sets` that are trained on.

    Raises InputError for a text that is missing and cannot be made.
    """
    cleanings = plan_cleaning(recipes, raws, corpora, heldout)
    held = to_hold_out(corpora, cleanings, heldout)
    for one in sets:
        if not one.is_cleaned and one not in corpora and not held:
            raise InputError(
                f"{one.text}: missing, {one.shards} is made from it; put held-out text there, or name another folder "
                "of texts"
            )
    print_line("against", heldout)
    for cleaning in held:
        print_line("holdout", cleaning.name, cleaning.raw, cleaning.config, heldout / cleaning.name)
    for cleaning in cleanings:
        print_line("clean", cleaning.name, cleaning.raw, cleaning.config, cleaning.text, str(cleaning.num_passes))


def print_line(*fields: str | Path) -> None:
    """Print fields with tabs between. Raises ConfigError for a path that the shell or a job's command would misread."""
    for text in map(str, fields):
        if text.startswith("-") or set(text) & set("\t\r\n"):
            raise ConfigError(f"{text!r}: begins with - or has a tab or a line's end in it; name it otherwise")
    print(*fields, sep="\t")


def check_order(root: Path, first: Recipe, second: Recipe) -> None:
    """Raise ConfigError if something is there whose source is not finished: it was made from an earlier one."""
    stage2 = Path(second.run_directory)
    made = [(first, stage2, progress(second) != "new" and Path(second.train.init_from) == Path(first.run_directory))]
    made += [(second, path, path.exists()) for path in (root / "export", root / "eval.json")]
    for source, path, is_there in made:
        if is_there and progress(source) != "finished":
            raise ConfigError(
                f"{path}: made from a {source.run_directory} that was another or not finished, for it is not finished "
                "now; move it away, or do the rest by hand"
            )


def progress(recipe: Recipe) -> str:
    """Return how far a stage is: new, begun or finished."""
    checkpoint = find_checkpoint(Path(recipe.run_directory))
    if checkpoint is None:
        return "new"
    return "finished" if read_state(checkpoint).step >= Schedule.of(recipe).num_steps else "begun"


if __name__ == "__main__":
    sys.exit(run_command("submit_all", lambda: describe_chain(*map(Path, sys.argv[1:]))))
