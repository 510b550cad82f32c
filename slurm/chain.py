"""For submit_all.sh: what a folder of recipes needs and what of it is there, a line each, tabs between."""

import sys
from pathlib import Path

from cmbert.checkpoint.files import find_checkpoint
from cmbert.checkpoint.state import read_state
from cmbert.config.load import load_recipe
from cmbert.config.schema import Recipe
from cmbert.data.shards.layout import is_shard_set
from cmbert.data.shards.shard_set import ShardSet
from cmbert.errors import ConfigError, InputError, run_command
from cmbert.runs.directory import check_belongs
from cmbert.schedule import Schedule
from cmbert.tokenizer import load_tokenizer


def describe_chain(recipes: Path, texts: Path) -> None:
    """Print root and tokenizer; each shard set's name, folder, text and state; each stage's recipe, run and state.

    Raises ConfigError or InputError if something is missing that no job of the chain makes, or if what is there is of
    other recipes: its jobs could only fail, and what was made from it would be taken for done.
    """
    stages = [load_recipe(recipes / f"stage{number}.toml") for number in (1, 2)]
    first, second = stages
    tokenizer = load_tokenizer(first.data.tokenizer, vocab_size=first.model.vocab_size)
    root = Path(first.run_directory).parent
    for stage in stages:
        check_belongs(stage)
    check_order(root, first, second)
    print_line("root", root)
    print_line("tokenizer", first.data.tokenizer)
    folders = {Path(source.path): texts / Path(source.path).name for stage in stages for source in stage.data.sources}
    heldout = Path(second.evaluation.shards) if second.evaluation.shards else None
    if heldout:
        folders[heldout] = texts / heldout.name
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise ConfigError(f"{recipes}: two shard sets have the same last name; their texts could not be told apart")
    for folder, text in folders.items():
        is_there = is_shard_set(folder)
        if not is_there and not text.exists():
            raise InputError(
                f"{text}: missing, {folder} is made from it; clean it into there, or name another folder of texts"
            )
        if is_there and ShardSet(folder).tokenizer_fingerprint not in (None, tokenizer.fingerprint):
            raise ConfigError(
                f"{folder}: made with another tokenizer than {first.data.tokenizer}; move it away, and it is made again"
            )
        print_line("shards", folder.name, folder, text, "there" if is_there else "missing")
    if heldout:
        print_line("heldout", heldout)
    for number, stage in enumerate(stages, start=1):
        print_line(f"stage{number}", recipes / f"stage{number}.toml", stage.run_directory, progress(stage))


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
    sys.exit(run_command("submit_all", lambda: describe_chain(Path(sys.argv[1]), Path(sys.argv[2]))))
