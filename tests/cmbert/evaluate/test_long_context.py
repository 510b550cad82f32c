"""The long-context check: the same hidden tokens at every context, a naive reading, the rule, the picture."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from cmbert.cli import main
from cmbert.config.load import load_recipe
from cmbert.data.shards.layout import token_dtype
from cmbert.data.shards.manifest import write_manifest
from cmbert.data.shards.shard_set import ShardSet
from cmbert.data.shards.writer import ShardWriter
from cmbert.errors import InputError
from cmbert.evaluate import long_context
from cmbert.evaluate.long_context import (
    SHORTEST_CONTEXT,
    compare,
    find_break,
    hide_words,
    print_stress,
    score_segments,
    standard_error,
    stress,
)
from cmbert.evaluate.long_context_plot import draw_stress
from cmbert.memory import PeakMemory
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.init import initialise
from cmbert.tokenizer import Tokenizer
from tests.conftest import VOCAB_SIZE, make_shards
from tests.own_ids import CLS_ID, MASK_ID, SEP_ID, own_vocabulary

OWN = own_vocabulary(VOCAB_SIZE)


@pytest.fixture
def model(recipe_file: Path) -> MaskedLanguageModel:
    model = MaskedLanguageModel(load_recipe(recipe_file, ["model.max_length=1024"]).model)
    initialise(model, 0)
    return model.eval()


@pytest.fixture(scope="session")
def long_shards(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """Nine documents of 2,048 tokens or more among short ones."""
    lengths = [100, 2048, 5000, 2047] + [2100] * 7
    return make_shards(tmp_path_factory.mktemp("long") / "shards", tokenizer, lengths=lengths)


def test_hidden_words_are_whole_and_never_cut(long_shards: Path) -> None:
    shards = ShardSet(long_shards)
    ids, places, targets = hide_words(shards, 2, 2048, "word", OWN)
    tokens, starts = shards.read(2, 0, 2048)
    assert (ids[places] == MASK_ID).all()
    assert (tokens[places] == targets).all()
    hidden = ids == MASK_ID
    assert (tokens[~hidden] == ids[~hidden]).all()
    assert hidden.mean() == pytest.approx(0.15, abs=0.01)
    left_out = set(np.flatnonzero(hidden)) - set(places.tolist())
    units = starts.cumsum()
    cut = {unit for bound in range(512, 2048, 512) if not starts[bound] for unit in [units[bound]]}
    assert {units[place] for place in left_out} <= cut
    assert not {units[place] for place in places} & cut
    assert set(units[hidden]) == set(units[places]) | {units[place] for place in left_out}
    for unit in set(units[places]):
        assert hidden[units == unit].all()


def test_losses_are_those_of_a_naive_reading(model: MaskedLanguageModel, long_shards: Path) -> None:
    ids, places, targets = hide_words(ShardSet(long_shards), 1, 2048, "word", OWN)
    for context in (512, 2048):
        found = score_segments(model, ids, places, targets, context, OWN)
        naive = []
        for start in range(0, 2048, context):
            segment = torch.tensor([CLS_ID, *ids[start : start + context], SEP_ID])
            with torch.inference_mode():
                logits = model.logits(segment, torch.tensor([0, len(segment)])).log_softmax(-1)
            inside = [i for i, place in enumerate(places) if start <= place < start + context]
            naive += [-logits[places[i] - start + 1, targets[i]].item() for i in inside]
        assert found == pytest.approx(naive, abs=2e-6)
    assert found != pytest.approx(score_segments(model, ids, places, targets, 512, OWN), abs=5e-6)


def test_every_context_scores_the_same_tokens_and_repeats(
    model: MaskedLanguageModel, tokenizer: Tokenizer, long_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, bytes, bytes, bytes]] = []

    def watched(model, ids, places, targets, context, vocabulary):  # type: ignore[no-untyped-def]
        asked.append((context, ids.tobytes(), places.tobytes(), targets.tobytes()))
        return score_segments(model, ids, places, targets, context, OWN)

    monkeypatch.setattr(long_context, "score_segments", watched)
    found = stress(model, tokenizer, long_shards, longest=2048, trained_tokens=64)
    assert [ask[0] for ask in asked] == [512, 1024, 2048] * 9
    for first in range(0, 27, 3):
        assert len({ask[1:] for ask in asked[first : first + 3]}) == 1
    assert found.documents == 9
    assert found.hidden_tokens == sum(len(ask[2]) // 8 for ask in asked[::3])
    assert found == stress(model, tokenizer, long_shards, longest=2048, trained_tokens=64)
    assert sum(place.end - place.start for place in found.by_position) == 2048
    assert np.mean([p.longest for p in found.by_position]) == pytest.approx(found.contexts[-1].loss, abs=0.02)
    assert stress(model, tokenizer, long_shards, longest=2048, max_documents=2).documents == 2


def test_rule() -> None:
    noise = np.random.default_rng(0).normal(0, 0.5, (20, 1))  # documents differ far more than contexts
    jitter = np.random.default_rng(1).normal(0, 0.01, (20, 5))
    losses = 5 + noise + jitter + np.array([0, -0.2, -0.19, -0.1, 0.3])
    scores = compare(losses, [512, 1024, 2048, 4096, 8192])
    assert [score.against for score in scores] == [None, 512, 1024, 1024, 1024]
    assert scores[3].difference == pytest.approx(0.1, abs=0.01)
    assert scores[3].difference_error < 0.1 * scores[3].loss_error
    assert find_break(scores, 20) == 4096
    assert find_break(scores, 7) is None  # too few documents
    assert find_break(compare(5 + noise + jitter - [0, 0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4, 5]), 20) is None
    small = compare(5 + noise + 0.1 * jitter + [0, 0, 0, 0, 0.008], [1, 2, 3, 4, 5])
    assert small[-1].difference > 3 * small[-1].difference_error
    assert find_break(small, 20) is None  # found, but too small to matter
    assert standard_error(np.array([1.0, 2.0, 4.0])) == pytest.approx(math.sqrt(7 / 3) / math.sqrt(3))


def test_a_model_that_cannot_read_far_breaks(
    model: MaskedLanguageModel, tokenizer: Tokenizer, long_shards: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def spoiled(model, ids, places, targets, context, vocabulary):  # type: ignore[no-untyped-def]
        return score_segments(model, ids, places, targets, context, OWN) + (context > 1024)

    print_stress(stress(model, tokenizer, long_shards, longest=2048))
    assert "quality breaks at 2,048 tokens" not in capsys.readouterr().out
    monkeypatch.setattr(long_context, "score_segments", spoiled)
    print_stress(stress(model, tokenizer, long_shards, longest=2048))
    assert "quality breaks at 2,048 tokens: +1.0" in capsys.readouterr().out
    print_stress(stress(model, tokenizer, long_shards, longest=2048, max_documents=3))
    assert "no verdict: 3 documents" in capsys.readouterr().out


def test_a_document_of_one_endless_word_does_not_spoil_the_others(
    model: MaskedLanguageModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def make(name: str, words: list[int]) -> Path:
        (tmp_path / name).mkdir()
        writer = ShardWriter(tmp_path / name, "00000", token_dtype(VOCAB_SIZE))
        for every in words:  # tokens of a word
            starts = np.arange(1024) % every == 0
            writer.append(np.arange(1024) % 300 + 50, np.array([1024]), starts)
        facts = {"fingerprint": tokenizer.fingerprint, "vocab_size": VOCAB_SIZE}
        write_manifest(tmp_path / name, {"tokenizer": facts, "shards": [writer.close()]})
        return tmp_path / name

    found = stress(model, tokenizer, make("some", [2, 1024, 3]), longest=1024)
    assert found.documents == 2
    assert all(math.isfinite(score.loss) and math.isfinite(score.difference_error) for score in found.contexts)
    with pytest.raises(InputError, match="no word of its documents of 1024 tokens can be hidden and scored"):
        stress(model, tokenizer, make("none", [1024]), longest=1024)


def test_the_figures_of_one_document_are_json(
    model: MaskedLanguageModel, tokenizer: Tokenizer, long_shards: Path
) -> None:
    found = stress(model, tokenizer, long_shards, longest=1024, max_documents=1)
    assert math.isnan(found.contexts[0].loss_error)
    written = json.loads(json.dumps(found.as_dict(), allow_nan=False))  # NaN is not JSON
    assert written["contexts"][0]["loss_error"] is None
    assert written["contexts"][0]["loss"] == found.contexts[0].loss


def test_memory_does_not_grow_with_the_square(model: MaskedLanguageModel) -> None:
    length = 16_384
    ids = np.full(length, 9)
    places = np.arange(0, length, 64)
    score_segments(model, ids, places, ids[places], 1024, OWN)
    with PeakMemory(torch.device("cpu")) as peak:
        score_segments(model, ids, places, ids[places], length, OWN)
    assert peak.bytes < 4 * length**2 / 4  # a quarter of one fp32 matrix of all pairs


def test_no_document_is_long_enough(model: MaskedLanguageModel, tokenizer: Tokenizer, long_shards: Path) -> None:
    with pytest.raises(InputError, match=r"has 5,000 tokens, --long-context 8192 needs .*ask for --long-context 4096"):
        stress(model, tokenizer, long_shards, longest=8192)
    assert SHORTEST_CONTEXT == 512


@pytest.mark.parametrize("longest", [1, 1000, 512])
def test_a_length_that_is_not_512_doubled(longest: int, long_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", "nowhere", "--data", str(long_shards), "--long-context", str(longest)]
    assert main(arguments) == 2
    assert f"--long-context: {longest} must be 512 doubled; try 1024" in capsys.readouterr().err


def test_command_and_picture(
    recipe_file: Path, tokenizer_directory: Path, model: MaskedLanguageModel, long_shards: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from cmbert.export.hf import export_folder

    config = model.config
    export_folder(
        model.state_dict(), config, tokenizer_directory, tmp_path / "e", format="hf", texts=["今天天气很好"], card=str
    )
    plot, output = tmp_path / "new" / "plot.png", tmp_path / "stress.json"
    arguments = ["eval", str(tmp_path / "e"), "--data", str(long_shards), "--long-context", "1024"]
    assert main([*arguments, "--plot", str(plot), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "\nmax_length 1,024\n" in printed
    assert "trained at" not in printed  # a folder does not say
    found = json.loads(output.read_text(encoding="utf-8"))
    assert [score["context_tokens"] for score in found["contexts"]] == [512, 1024]
    picture = imread(plot)
    assert picture.shape[0] > 400
    assert picture.shape[1] > 1000
    assert picture[..., :3].std() > 0.05


def test_both_lengths_are_marked(model: MaskedLanguageModel, tokenizer: Tokenizer, long_shards: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    found = stress(model, tokenizer, long_shards, longest=2048, trained_tokens=512, max_documents=2)
    draw_stress(found, tmp_path / "a.png")
    first = (tmp_path / "a.png").read_bytes()
    draw_stress(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == first
