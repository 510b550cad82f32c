"""Recipes of two stages, and what chain.py says of them."""

import sys
from pathlib import Path

from cmbert.config.load import load_recipe
from cmbert.config.schema import Recipe
from tests import forking

ROOT = Path(__file__).parents[2]


class Recipes:
    """A folder of two stages, with the shards that they read."""

    def __init__(self, recipe_file: Path):
        self.folder = recipe_file.parent
        self.first = self._stage(1, recipe_file, "")
        self.second = self._stage(2, recipe_file, f'[train]\ninit_from = "{self.folder}/runs/stage1"\n')

    def _stage(self, number: int, base: Path, more: str) -> Recipe:
        path = self.folder / f"stage{number}.toml"
        text = f'extends = "{base}"\nrun_directory = "{self.folder}/runs/stage{number}"\n{more}'
        path.write_text(text, encoding="utf-8")
        return load_recipe(path)

    def describe(self, code: int = 0, recipes: Path | None = None) -> str:
        """Return what chain.py says, on stderr if it refuses. recipes: a folder in which they stand now."""
        folders = (recipes or self.folder, self.folder / "text", self.folder / "raw")
        command = [sys.executable, str(ROOT / "slurm" / "chain.py"), *map(str, folders)]
        done = forking.run(command, cwd=ROOT)
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout
