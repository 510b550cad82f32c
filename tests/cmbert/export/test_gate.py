"""The export gate on large's shape, an eighth as wide, with an outlier as trained models have: right passes, wrong not.

Every fault is put into a right export and measured in roundings, errors of our own fp32 program: a right one has about
1, the gate allows 16, and every fault here has more than 160, from 390 to 1.9 million.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cmbert.config.schema import ModelConfig
from cmbert.errors import CheckpointError
from cmbert.export.gate import (
    ROUNDINGS,
    Reference,
    load_theirs,
    make_reference,
    measure,
    require_equal,
    transformers_program,
)
from cmbert.export.hf import _write
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.init import initialise
from tests.cmbert.export.faults import FAULTS, MORE_FAULTS, PADDING_FAULTS, window

SHAPE = {"num_layers": 28, "hidden_size": 128, "num_heads": 2, "intermediate_size": 328, "max_length": 8192}
VOCAB_SIZE = 384  # of the tests' tokenizer
TEXTS = ["今天天气很好，我们去公园散步。", "你好", ""]  # none of them as long as a window
CHANNEL, OUTLIER, MEDIAN = 7, 255.0, 1.2


def trained_like(norm: str = "rmsnorm") -> MaskedLanguageModel:
    """A model whose parts all matter, with one channel of 255 in the residual stream beside others of 1.2."""
    model = MaskedLanguageModel(ModelConfig(vocab_size=VOCAB_SIZE, norm=norm, norm_eps=1e-5, **SHAPE))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                weight.copy_(1 + 0.2 * noise)
                if name.startswith("model.layers"):  # they give back what the outlier takes from the other channels
                    weight.mul_(6.0)
                    weight[CHANNEL] = 0.3
            elif weight.ndim == 2:
                depth = 2 * SHAPE["num_layers"] if name.endswith("Wo.weight") else 1
                weight.copy_(noise * (weight.shape[1] * depth) ** -0.5)
            else:
                weight.copy_(0.1 * noise)
        embeddings = model.model.embeddings
        embeddings.tok_embeddings.weight.copy_(torch.randn(VOCAB_SIZE, SHAPE["hidden_size"], generator=generator))
        embeddings.tok_embeddings.weight[:, CHANNEL] = 3.0
        embeddings.norm.weight.mul_(1.8)
        embeddings.norm.weight[CHANNEL] = OUTLIER / 3.0
        model.model.layers[0].attn.Wqkv.weight[:, CHANNEL] = 0  # it reads the stream without a norm
        model.head.norm.weight.mul_(8.0)  # logits of a model that is sure of itself
    return model.eval()


def write(model: MaskedLanguageModel, tokenizer_directory: Path, folder: Path) -> Path:
    folder.mkdir()
    _write(folder, model, tokenizer_directory)
    return folder


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers copies model code of folders it loads; here, and not into the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        place = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", place)
        yield


@pytest.fixture(scope="module")
def right(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_directory: Path, modules: None
) -> tuple[Path, MaskedLanguageModel, Reference]:
    """A right export, its model, and what the gate compares it with."""
    model = trained_like()
    folder = write(model, tokenizer_directory, tmp_path_factory.mktemp("right") / "folder")
    return folder, model, make_reference(folder, model, TEXTS)


def roundings(folder: Path, reference: Reference, implementation: str = "sdpa") -> float:
    return measure(reference, transformers_program(load_theirs(folder), implementation)) / reference.rounding


@torch.no_grad()
def test_the_right_export_of_a_model_with_an_outlier_passes(right: tuple[Path, MaskedLanguageModel, Reference]) -> None:
    folder, model, reference = right
    stream: list[torch.Tensor] = []
    hook = model.model.layers[14].register_forward_hook(lambda layer, inputs, output: stream.append(output))
    batch = reference.batches[-1]
    real = batch.attention_mask.bool()
    ids, bounds = batch.input_ids[real], torch.nn.functional.pad(real.sum(1).cumsum(0), (1, 0)).int()
    ours = model.logits(ids, bounds)
    hook.remove()
    assert stream[0].abs().max().item() == pytest.approx(OUTLIER, rel=0.2)
    assert stream[0].abs().median().item() == pytest.approx(MEDIAN, rel=0.2)
    theirs = load_theirs(folder)
    programs = {name: transformers_program(theirs, name) for name in ("eager", "sdpa")}
    apart = (programs["sdpa"](batch.input_ids, batch.attention_mask)[real] - ours).abs().max().item()
    assert apart > 1e-4  # two right programs: nothing absolute can be allowed
    assert reference.num_tokens > 500
    errors = require_equal(reference, programs)
    assert all(0.5 * reference.rounding < error < ROUNDINGS / 8 * reference.rounding for error in errors.values())


@pytest.mark.parametrize(
    "name", [*FAULTS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_FAULTS)], ids=str
)
def test_a_wrong_export_fails_by_far(
    name: str, right: tuple[Path, MaskedLanguageModel, Reference], tmp_path: Path
) -> None:
    folder, _, reference = right
    wrong = tmp_path / "wrong"
    shutil.copytree(folder, wrong)
    (FAULTS | MORE_FAULTS)[name](wrong)
    found = roundings(wrong, reference)
    print(f"{name}: {found:,.0f} roundings, allowed {ROUNDINGS:g}")
    assert found > 10 * ROUNDINGS


LONG_TEXTS = ["今天天气很好，我们去公园散步。" * 200, "语言模型学习词语之间的关系。" * 200, "第五段" * 400]


@pytest.fixture(scope="module")
def long_texts(right: tuple[Path, MaskedLanguageModel, Reference]) -> tuple[Path, Reference]:
    """A right export, and what the gate compares it with when every text is longer than the gate reads."""
    folder, model, _ = right
    return folder, make_reference(folder, model, LONG_TEXTS)


def test_short_and_long_texts_are_in_one_batch_and_padded_at_either_side(long_texts: tuple[Path, Reference]) -> None:
    folder, reference = long_texts
    padded = [batch for batch in reference.batches if not batch.attention_mask.all()]
    assert all(batch.attention_mask.sum(1).max() == batch.attention_mask.shape[1] for batch in padded)
    assert {bool(batch.attention_mask[:, 0].all()) for batch in padded} == {True, False}  # at the right, at the left
    lengths = {length for batch in padded for length in batch.attention_mask.sum(1).tolist()}
    assert {2, 3} < lengths  # nothing but [CLS] and [SEP], and one token between them
    assert max(lengths) > 128 + 64  # a window, and what lies outside of it at either end
    assert max(batch.attention_mask.shape[1] for batch in reference.batches) == 512
    theirs = load_theirs(folder)
    require_equal(reference, {name: transformers_program(theirs, name) for name in ("eager", "sdpa")})


FEW = ("no mask in local layers", "padding sought at the right", "an empty text")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in PADDING_FAULTS], ids=str
)
def test_a_program_that_handles_padding_wrongly_fails(name: str, long_texts: tuple[Path, Reference]) -> None:
    folder, reference = long_texts
    theirs = load_theirs(folder)
    found = measure(reference, lambda ids, mask: PADDING_FAULTS[name](theirs, ids, mask)) / reference.rounding
    print(f"{name}: {found:,.0f} roundings, allowed {ROUNDINGS:g}")
    assert found > 10 * ROUNDINGS


def test_a_difference_is_told_with_what_is_allowed(right: tuple[Path, MaskedLanguageModel, Reference]) -> None:
    _, _, reference = right

    def program(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return torch.full((*input_ids.shape, VOCAB_SIZE), torch.nan)

    with pytest.raises(CheckpointError, match=r"not ours: .* by wrong nan; ours in fp32 \d.*, allowed \d"):
        require_equal(reference, {"wrong": program})


def test_what_fp32_cannot_compute_is_not_compared(
    right: tuple[Path, MaskedLanguageModel, Reference],
) -> None:
    folder, _, _ = right
    model = trained_like()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.attn.Wqkv.weight.mul_(30)  # attention that turns on the last bit of a score
    with pytest.raises(CheckpointError, match="cannot be compared"):
        make_reference(folder, model, TEXTS[:1])


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_a_model_as_initialised_passes_too(norm: str, modules: None, tokenizer_directory: Path, tmp_path: Path) -> None:
    model = MaskedLanguageModel(ModelConfig(vocab_size=VOCAB_SIZE, norm=norm, norm_eps=1e-5, **SHAPE)).eval()
    initialise(model, seed=1)
    folder = write(model, tokenizer_directory, tmp_path / "folder")
    reference = make_reference(folder, model, TEXTS)
    for implementation in ("eager", "sdpa"):
        assert 0.5 < roundings(folder, reference, implementation) < ROUNDINGS / 8
    window(130)(folder)
    assert roundings(folder, reference) > 4 * ROUNDINGS  # the least of what an untrained model shows
