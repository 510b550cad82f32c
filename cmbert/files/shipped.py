"""Files that come with the program: in an installed package parts of it, in a clone beside it (setup.py)."""

from pathlib import Path

PACKAGE = Path(__file__).absolute().parents[1]


def shipped_files(folder: str, suffix: str) -> dict[str, Path]:
    """Return the files of a folder of the repository that end in `suffix`, by name without it, in order."""
    places = (PACKAGE / folder, PACKAGE.parent / folder)
    found = next((place for place in places if place.is_dir()), PACKAGE / folder)
    return {path.name.removesuffix(suffix): path for path in sorted(found.glob(f"*{suffix}"))}
