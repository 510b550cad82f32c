"""The text that the tests here make shards of, and the hashes of what they made."""

from pathlib import Path

from cmbert.files.operations import hash_file

SENTENCE = "他在北京大学读书，今天天气很好。GPT-4v2.0的T恤衫😀\n"


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in sorted(directory.iterdir())}
