"""Several sets, contexts and units: one table whose figures are the manifest's and those of single calls."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode

from cmbert.cli import main
from cmbert.config.load import load_recipe
from cmbert.data.batches import PackedBatch
from cmbert.data.shards.layout import token_dtype
from cmbert.data.shards.manifest import read_manifest, write_manifest
from cmbert.data.shards.writer import ShardWriter
from cmbert.errors import ConfigError
from cmbert.evaluate import pseudo_perplexity
from cmbert.evaluate.domains import evaluate_sets, name_sets, position_table, score_table
from cmbert.evaluate.pseudo_perplexity import MASK_RATE, Unit, evaluate, heldout_reader, score_batch
from cmbert.evaluate.table import display_width, markdown_table
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.init import initialise
from cmbert.tokenizer import Tokenizer
from tests.conftest import SENTENCES, VOCAB_SIZE, make_shards
from tests.own_ids import MASK_ID


@pytest.fixture
def model(recipe_file: Path) -> MaskedLanguageModel:
    model = MaskedLanguageModel(load_recipe(recipe_file).model)
    initialise(model, 0)
    return model.eval()


def test_characters_are_counted_where_they_begin(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.token_character_lengths()
    for text in (*SENTENCES, "é𠀀·\u00ad\u00a0 龘"):  # two to four bytes each, spelled above and below U+0100
        assert lengths[tokenizer.encode(text)].sum() == len(tokenizer.normalize(text))
    assert not lengths[: MASK_ID + 1].any()


@pytest.mark.parametrize("unit", ["word", "token"])
def test_bits_per_character_is_the_naive_sum(
    unit: Unit, model: MaskedLanguageModel, tokenizer: Tokenizer, shards: Path
) -> None:
    score = evaluate(model, tokenizer, shards, context=64, max_rows=10, unit=unit)
    reader = heldout_reader(tokenizer, shards, 64, unit)
    rows = reader.assemble(range(10))
    words: list[list[int]] = []
    for place, (token, begins) in enumerate(zip(rows.ids.tolist(), rows.unit_starts.tolist(), strict=True)):
        if token > MASK_ID and (begins or unit == "token"):
            words.append([])
        if token > MASK_ID:
            words[-1].append(place)
    length_of = {place: len(word) for word in words for place in word}
    batch = reader.micro_batch(range(10), MASK_RATE)
    loss_M, _ = score_batch(model, batch, torch.device("cpu"))
    byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
    spelled = {index: token for token, index in tokenizer.backend.get_vocab().items()}
    asked = [length_of[place] for place in batch.masked_positions.tolist()]
    bits = characters = 0.0
    for length, loss, target in zip(asked, loss_M.tolist(), batch.targets.tolist(), strict=True):
        weight = list(length_of.values()).count(length) / asked.count(length)
        bits += weight * loss / math.log(2)
        characters += weight * sum(byte_of[char] & 0xC0 != 0x80 for char in spelled[target])
    assert score.bits_per_character == pytest.approx(bits / characters)


@pytest.mark.parametrize("context", [64, 1024])
def test_bits_per_character_are_those_of_the_whole_text(
    context: int, model: MaskedLanguageModel, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row's budget seldom has room for a long word, which its model must not gain or lose by."""

    def score_batch(model: Any, batch: PackedBatch, device: Any) -> tuple[np.ndarray, np.ndarray]:
        return np.ones(len(batch.targets)), np.ones(len(batch.targets), bool)  # 1 nat a token

    monkeypatch.setattr(pseudo_perplexity, "score_batch", score_batch)
    characters = tokenizer.token_character_lengths()
    one, many = int(np.flatnonzero(characters == 1)[-1]), int(characters.argmax())
    assert characters[many] > 2
    words = [[many], [one] * 6]  # few and many tokens to the character
    random, writer = np.random.default_rng(0), ShardWriter(tmp_path, "00000", token_dtype(VOCAB_SIZE))
    num_tokens = num_characters = 0
    for _ in range(400):
        chosen = [words[i] for i in random.integers(2, size=60)]
        tokens = np.concatenate(chosen)
        writer.append(tokens, np.array([len(tokens)]), np.concatenate([np.arange(len(word)) == 0 for word in chosen]))
        num_tokens, num_characters = num_tokens + len(tokens), num_characters + characters[tokens].sum()
    facts = {"fingerprint": tokenizer.fingerprint, "vocab_size": VOCAB_SIZE}
    write_manifest(tmp_path, {"tokenizer": facts, "shards": [writer.close()]})
    score = evaluate(model, tokenizer, tmp_path, context=context)
    assert score.bits_per_character == pytest.approx(num_tokens / num_characters / math.log(2), rel=0.01)


def test_units(model: MaskedLanguageModel, tokenizer: Tokenizer, shards: Path) -> None:
    words, tokens = (heldout_reader(tokenizer, shards, 64, unit) for unit in ("word", "token"))
    chosen = [reader.micro_batch(range(40), MASK_RATE).masked_positions.numpy() for reader in (words, tokens)]
    neighbours = [np.mean(np.diff(places) == 1) for places in chosen]
    assert neighbours[0] > 1.5 * neighbours[1]  # segments of a word are hidden together
    assert len(chosen[0]) == pytest.approx(len(chosen[1]), rel=0.05)
    assert evaluate(model, tokenizer, shards, context=64, unit="token", max_rows=5).unit == "token"


def test_table_holds_what_single_calls_give(
    model: MaskedLanguageModel, tokenizer: Tokenizer, shards: Path, tmp_path: Path
) -> None:
    named = make_shards(tmp_path / "laws", tokenizer, lengths=[40, 300, 77])
    manifest = read_manifest(named)
    facts = {"totals": {"characters": 834}, "straddle": {"rate": 0.0625}}
    write_manifest(named, {key: manifest[key] for key in ("tokenizer", "shards")} | facts)
    sets = {"法律": named, "plain": shards}

    def scores() -> list:
        return list(evaluate_sets(model, tokenizer, sets, contexts=[64, 128], units=["word", "token"], max_rows=3))

    found = scores()
    assert found == scores()
    assert [(s.facts.name, s.score.context_tokens, s.score.unit) for s in found] == [
        (name, context, unit) for name in sets for context in (64, 128) for unit in ("word", "token")
    ]
    for one in found:
        alone = {"context": one.score.context_tokens, "unit": one.score.unit, "max_rows": 3}
        assert evaluate(model, tokenizer, sets[one.facts.name], **alone) == one.score
    lines = score_table(found).splitlines()
    assert len({display_width(line) for line in lines}) == 1
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert cells[:4] == ["法律", "3", "2.000", "6.2 %"]
    assert [cell.strip() for cell in lines[6].split("|")[3:5]] == ["–", "–"]  # a manifest without these counts
    assert position_table(found).splitlines()[0].split("|")[4:-1] == [" 0+ ".rjust(8), " 64+ ".rjust(8)]


def test_bfloat16_scores_nearly_the_same(model: MaskedLanguageModel, tokenizer: Tokenizer, shards: Path) -> None:
    exact = evaluate(model, tokenizer, shards, context=64, max_rows=20)
    rounded = evaluate(model.bfloat16(), tokenizer, shards, context=64, max_rows=20)
    assert rounded.heldout_loss == pytest.approx(exact.heldout_loss, abs=0.02)
    assert rounded.heldout_loss != exact.heldout_loss


def test_names(tmp_path: Path) -> None:
    folder = tmp_path / "a=b"
    folder.mkdir()
    assert name_sets(["legal=x/y", "x/z", str(folder)]) == {"legal": Path("x/y"), "z": Path("x/z"), "a=b": folder}
    with pytest.raises(ConfigError, match="two sets are named 'z'; name them"):
        name_sets(["x/z", "y/z"])
    with pytest.raises(ConfigError, match="'=x' is neither DIR nor NAME=DIR"):
        name_sets(["=x"])


def test_markdown() -> None:
    assert markdown_table(["名", "n"], [["a", "1,000"]]) == "| 名  |     n |\n| --- | ----: |\n| a   | 1,000 |"


@pytest.fixture
def exported(recipe_file: Path, tokenizer_directory: Path, model: MaskedLanguageModel, tmp_path: Path) -> Path:
    from cmbert.export.hf import export_folder

    config = load_recipe(recipe_file).model
    export_folder(
        model.state_dict(),
        config,
        tokenizer_directory,
        tmp_path / "export",
        format="hf",
        texts=list(SENTENCES),
        card=str,
    )
    return tmp_path / "export"


def test_command(
    exported: Path, shards: Path, other_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "scores.json"
    arguments = ["eval", str(exported), "--data", str(shards), f"second={other_shards}", "--max-rows", "3"]
    assert main([*arguments, "--context", "64,128", "--unit", "word,token", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(output.read_text(encoding="utf-8"))
    assert len(found["scores"]) == printed.count("\n| shards") + printed.count("\n| second") == 8
    assert found["device"] == "cpu, fp32"
    assert main([*arguments[:4], "--max-rows", "3", "--context", "64", "--output", str(output)]) == 0
    alone = json.loads(output.read_text(encoding="utf-8"))
    assert alone["heldout_loss"] == found["scores"][0]["heldout_loss"]
    assert "held-out loss        " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--context", "8"], "--context: 8 must be at least 16 tokens"),
        (["--plot", "x.png"], "--plot draws --long-context"),
        (["--long-context", "1000"], "--long-context: 1000 must be 512 doubled; try 1024"),
        (["--long-context", "512"], "--long-context: 512 must be 512 doubled; try 1024"),
        (["--long-context", "1024", "--context", "64"], "neither --context nor --by-position"),
        (["--long-context", "1024", "--plot", "x.pdf"], "--plot: x.pdf must be a file that ends in .png"),
        (["--long-context", "1024"], "its longest document has 300 tokens, --long-context 1024 needs one as long"),
    ],
)
def test_mistakes_are_one_line(
    exported: Path, tokenizer: Tokenizer, tmp_path: Path, arguments: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = make_shards(tmp_path / "short", tokenizer, lengths=[300, 20])
    assert main(["eval", str(exported), "--data", str(data), *arguments, "--output", str(tmp_path / "o.json")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o.json").exists()
