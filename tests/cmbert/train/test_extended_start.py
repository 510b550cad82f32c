"""A start with more ids than the weights have: new rows are means of their parts' rows, blank rows stay blank."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from cmbert.config.load import load_recipe
from cmbert.config.schema import Recipe
from cmbert.errors import ConfigError
from cmbert.export.hf import export_folder
from cmbert.model.folder import load_folder
from cmbert.model.heads import DECODER, EMBEDDING
from cmbert.model.vocabulary_rows import BLANK_BIAS, DECODER_BIAS
from cmbert.tokenizer import load_tokenizer
from cmbert.train.starting_weights import check_starting_weights, starting_model
from data_tools.cli import main as data_tools

TEXT = "人工智能正在改变司法实践。" * 40


@pytest.fixture
def start(make_perturbed, tokenizer_directory: Path, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    """An exported folder, as `cmbert import` makes one, too."""
    model = make_perturbed("rmsnorm", vocab_size=load_tokenizer(tokenizer_directory).vocabulary.rows)
    export_folder(
        model.state_dict(), model.config, tokenizer_directory, tmp_path / "start", format="hf", texts=[TEXT],
        card=lambda measured: "",
    )  # fmt: skip
    return tmp_path / "start"


@pytest.fixture
def extended(start: Path, tmp_path: Path) -> Path:
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": TEXT}, ensure_ascii=False) + "\n", encoding="utf-8")
    words = ["extend-tokenizer", "--tokenizer", start, "--input", tmp_path / "text.jsonl", "--add", "3"]
    assert data_tools([*map(str, words), "--output", str(tmp_path / "extended")]) == 0
    return tmp_path / "extended"


def stage(recipe_file: Path, start: Path, tokenizer: Path, *more: str) -> Recipe:
    _, config = load_folder(start)
    rows = load_tokenizer(tokenizer).vocabulary.rows
    model = {
        name: getattr(config, name)
        for name in ("num_layers", "hidden_size", "num_heads", "intermediate_size", "local_window")
    }
    names = [f"model.{name}={value}" for name, value in (model | {"vocab_size": rows}).items()]
    return load_recipe(recipe_file, [*names, f"train.init_from={start}", f"data.tokenizer={tokenizer}", *more])


def test_new_rows_are_the_means_of_their_parts(recipe_file: Path, start: Path, extended: Path) -> None:
    recipe = stage(recipe_file, start, extended)
    check_starting_weights(recipe)
    before, after = load_folder(start)[0].state_dict(), starting_model(recipe).state_dict()
    old, new = load_tokenizer(start), load_tokenizer(extended)
    assert new.vocab_size == old.vocab_size + 3
    record = json.loads((extended / "extension.json").read_text(encoding="utf-8"))
    for name in (EMBEDDING, DECODER, DECODER_BIAS):
        assert torch.equal(after[name][: old.vocab_size], before[name][: old.vocab_size])
        for index in range(old.vocab_size, new.vocab_size):
            parts = record["parts"][index - old.vocab_size]
            assert len(parts) > 1
            assert torch.allclose(after[name][index], before[name][parts].mean(0))
    assert (after[DECODER_BIAS][new.vocab_size :] == BLANK_BIAS).all()
    assert not after[EMBEDDING][new.vocab_size :].any()
    others = {name for name in after if name not in (EMBEDDING, DECODER, DECODER_BIAS)}
    assert all(torch.equal(after[name], before[name]) for name in others)


def test_a_run_with_blank_rows_is_exported_and_read_by_transformers(
    recipe_file: Path, start: Path, extended: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForMaskedLM

    recipe = stage(recipe_file, start, extended)
    export_folder(
        starting_model(recipe).state_dict(), recipe.model, extended, tmp_path / "out", format="hf", texts=[TEXT],
        card=lambda measured: "",
    )  # fmt: skip
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert theirs.get_input_embeddings().num_embeddings == recipe.model.vocab_size
    assert load_tokenizer(tmp_path / "out", vocab_size=recipe.model.vocab_size).vocab_size < recipe.model.vocab_size


def test_rows_that_are_not_the_tokenizers_are_answered_with_the_right_number(extended: Path) -> None:
    tokenizer = load_tokenizer(extended)
    with pytest.raises(ConfigError, match=f"vocab_size = {tokenizer.vocabulary.rows} in the recipe's"):
        load_tokenizer(extended, vocab_size=tokenizer.vocabulary.rows + 64)


def test_an_extension_of_another_tokenizer_is_refused(
    recipe_file: Path, start: Path, extended: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(extended, tmp_path / "other")
    record = json.loads((other / "extension.json").read_text(encoding="utf-8"))
    (other / "extension.json").write_text(json.dumps(record | {"parent_fingerprint": "0" * 32}), encoding="utf-8")
    with pytest.raises(ConfigError, match="is not the tokenizer that the weights of"):
        check_starting_weights(stage(recipe_file, start, other))
    (other / "extension.json").write_text(json.dumps(record | {"parts": record["parts"][1:]}), encoding="utf-8")
    with pytest.raises(ConfigError, match="its ids are not those of a tokenizer of"):
        check_starting_weights(stage(recipe_file, start, other))
    with pytest.raises(ConfigError, match="tile first, then extend"):
        check_starting_weights(stage(recipe_file, start, extended, "train.init_tiling=true"))
