"""Other trainers' words, keys of another section, and every unknown and missing key in one line."""

import re
from pathlib import Path

import pytest

from cmbert.config.keys import dotted_keys
from cmbert.config.load import load_recipe
from cmbert.config.schema import Recipe
from cmbert.config.words import WORDS
from cmbert.errors import ConfigError

KEYS = set(dotted_keys(Recipe))
TYPED = [  # where a person would put it, what is meant
    ("train.learning_rate", "schedule.lr_max"),
    ("optimizer.lr", "schedule.lr_max"),
    ("schedule.max_lr", "schedule.lr_max"),
    ("schedule.min_lr", "schedule.lr_min"),
    ("train.batch_size", "train.rows_per_step"),
    ("train.per_device_train_batch_size", "train.micro_batch_rows"),
    ("train.gradient_accumulation_steps", "train.rows_per_step"),
    ("train.max_steps", "train.total_tokens"),
    ("train.epochs", "train.total_tokens"),
    ("schedule.warmup_ratio", "schedule.warmup_tokens"),
    ("schedule.warmup_steps", "schedule.warmup_tokens"),
    ("data.seq_length", "data.context_tokens"),
    ("data.max_length", "data.context_tokens"),
    ("train.masking_probability", "mask.peak_rate"),
    ("optimizer.adam_beta1", "optimizer.beta1"),
    ("optimizer.muon_lr", "schedule.lr_max"),
    ("optimizer.muon_momentum", "optimizer.momentum"),
    ("optimizer.use_muon", "optimizer.kind"),
    ("train.output_dir", "run_directory"),
    ("train.save_steps", "train.checkpoint_every_steps"),
    ("train.eval_steps", "evaluation.every_steps"),
    ("train.logging_steps", "train.log_every_steps"),
    ("train.mlm_probability", "mask.peak_rate"),
    ("LR", "schedule.lr_max"),
    ("train.weight_decay", "optimizer.weight_decay"),  # a key of ours, of another section
    ("train.lr_max", "schedule.lr_max"),
    ("hidden_size", "model.hidden_size"),
    ("vocab_size", "model.vocab_size"),
    ("train.num_layer", "model.num_layers"),  # misspelt, too
]


def test_the_table_names_real_keys_and_asks_none_of_them_away() -> None:
    named = {key for key, _ in WORDS.values() if key}
    named |= {key for _, how in WORDS.values() for key in re.findall(r"[a-z]+\.[a-z_0-9]+", how)}
    assert named <= KEYS
    leaves = {key.rpartition(".")[2] for key in KEYS}
    assert set(WORDS) & leaves == {"max_length", "max_epochs", "shards"}  # typed elsewhere, they mean something else


@pytest.mark.parametrize(("typed", "meant"), TYPED)
def test_a_word_gets_its_key(recipe_file: Path, typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"{typed}: unknown key; .*\b{re.escape(meant)}\b"):
        load_recipe(recipe_file, [f"{typed}=1"])


@pytest.mark.parametrize("typed", ["train.zzz", "train.max_stuff", "zzz"])
def test_no_spelling_is_guessed_that_is_not_near(recipe_file: Path, typed: str) -> None:
    with pytest.raises(ConfigError, match=f"{typed}: unknown key; known keys: "):
        load_recipe(recipe_file, [f"{typed}=1"])


def test_all_that_is_unknown_or_missing_comes_in_one_line(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("lr = 1\n[model]\nnum_layers = 2\n[train]\nepochs = 3\n[[data.sources]]\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith(f"{recipe}: lr: unknown key; here it is schedule.lr_max; train.epochs: unknown key; ")
    assert "run_directory: missing key (Where the run lives); " in said
    assert "model.hidden_size: missing key (Width of the residual stream); " in said
    assert "data.sources[0].path: missing key (Shard-set directory); " in said
    assert said.endswith("`cmbert new NAME` writes a whole recipe")
