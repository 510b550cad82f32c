"""Configurations of `clean`: the shipped ones load, a mistake is named with the key that was meant."""

from pathlib import Path

import pytest

from cmbert.config.load import load_recipe
from cmbert.errors import ConfigError
from data_tools.clean.config import WORDS, dotted_keys, load_clean_config

RECIPES = Path(__file__).parents[3] / "recipes"


def test_configuration_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "clean.toml"
    for text, message in (
        ("[qualty]\n", "did you mean 'quality'"),
        ("[quality]\nmin_hanzi_shar = 0.5\n", "quality.min_hanzi_shar: unknown key; did you mean 'min_hanzi_share'"),
        ("min_characters = 5\n", "min_characters: unknown key; write min_characters under .quality."),
        ("[quality]\nnear = true\n", "quality.near: unknown key; write near under .duplicates."),
        ("[quality]\nmin_length = 5\n", "quality.min_length: unknown key; write min_characters under .quality."),
        ("[normalize]\ntext_column = 'a'\n", "normalize.text_column: unknown key; write text_key above the first"),
        ("[quality]\nmin_hanzi_share = 5.0\n", "quality.min_hanzi_share: 5.0 must lie between 0 and 1"),
        ("[normalize]\nurls = 'delete'\n", "normalize.urls: 'delete' is not one of"),
        ("[duplicates]\nnum_buckets = 0\n", r"duplicates\.num_buckets: 0 must be 1 or more"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_clean_config(path)


def test_every_word_leads_to_a_key() -> None:
    assert set(WORDS.values()) <= set(dotted_keys())
    assert not set(WORDS) & {key.rpartition(".")[2] for key in dotted_keys()}


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("clean/*.toml")), ids=lambda path: path.stem)
def test_shipped_configurations_load(path: Path) -> None:
    config = load_clean_config(path)
    assert config.source == path.stem
    large = load_recipe(RECIPES / "large/stage1.toml")
    assert any(Path(source.path).name == config.source for source in large.data.sources)
