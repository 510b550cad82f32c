"""For submit_all.sh: what a folder of recipes needs and what of it is there, a line each, tabs between."""

import sys
from pathlib import Path

from cmbert.config.load import load_recipe
from cmbert.config.schema import Recipe
from cmbert.data.shards import MANIFEST_FILE
from cmbert.errors import ConfigError, InputError, run_command
from cmbert.tokenizer import load_tokenizer
from cmbert.train.checkpoint import find_checkpoint, read_state
from cmbert.train.schedule import num_steps


def describe_chain(recipes: Path, texts: Path) -> None:
    """Print root and tokenizer; each shard set's name, folder, text and state; each stage's recipe, run and state.

    Raises ConfigError or InputError if something is missing that no job of the chain makes.
    """
    stages = [load_recipe(recipes / f"stage{number}.toml") for number in (1, 2)]
    first, second = stages
    load_tokenizer(first.data.tokenizer, vocab_size=first.model.vocab_size)
    print("root", Path(first.run_directory).parent, sep="\t")
    print("tokenizer", first.data.tokenizer, sep="\t")
    folders = {Path(source.path): texts / Path(source.path).name for stage in stages for source in stage.data.sources}
    heldout = Path(second.evaluation.shards) if second.evaluation.shards else None
    if heldout:
        folders[heldout] = texts / heldout.name
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise ConfigError(f"{recipes}: two shard sets have the same last name; their texts could not be told apart")
    for folder, text in folders.items():
        is_there = (folder / MANIFEST_FILE).is_file()
        if not is_there and not text.exists():
            raise InputError(f"{text}: missing, {folder} is made from it; clean it into there, or name another --text")
        print("shards", folder.name, folder, text, "there" if is_there else "missing", sep="\t")
    if heldout:
        print("heldout", heldout, sep="\t")
    for number, stage in enumerate(stages, start=1):
        print(f"stage{number}", recipes / f"stage{number}.toml", stage.run_directory, progress(stage), sep="\t")


def progress(recipe: Recipe) -> str:
    """Return how far a stage is: new, begun or finished."""
    checkpoint = find_checkpoint(Path(recipe.run_directory))
    if checkpoint is None:
        return "new"
    return "finished" if read_state(checkpoint).step >= num_steps(recipe) else "begun"


if __name__ == "__main__":
    sys.exit(run_command("submit_all", lambda: describe_chain(Path(sys.argv[1]), Path(sys.argv[2]))))
