"""Others' models as starting points: what transformers computes, special tokens by their roles, refusals in a line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cmbert.config.schema import ModelConfig
from cmbert.errors import CheckpointError, CmbertError
from cmbert.export import importing
from cmbert.export.hf import is_export
from cmbert.export.importing import TEXTS, import_model, read_origin
from cmbert.model.config_json import model_config
from cmbert.model.folder import load_folder
from cmbert.model.vocabulary_rows import BLANK_BIAS
from cmbert.tokenizer import load_tokenizer
from tests.cmbert.export.families import FAMILIES


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: make(root / name) for name, make in FAMILIES.items()}


def packed(texts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    bounds = torch.tensor([0, *(len(ids) for ids in texts)]).cumsum(0).int()
    return torch.tensor([token for ids in texts for token in ids]), bounds


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    import_model(folders[family], tmp_path / "ours")
    theirs = AutoModelForMaskedLM.from_pretrained(folders[family], dtype=torch.float32).eval()
    reader = AutoTokenizer.from_pretrained(folders[family])
    model, config = load_folder(tmp_path / "ours")
    tokenizer = load_tokenizer(tmp_path / "ours", vocab_size=config.vocab_size)
    padded = reader(list(TEXTS), padding=True, truncation=True, max_length=96, return_tensors="pt")
    real = padded["attention_mask"].bool()
    texts = [row[keep].tolist() for row, keep in zip(padded["input_ids"], real, strict=True)]
    assert {ids[0] for ids in texts} == {tokenizer.vocabulary.cls_id}
    assert {ids[-1] for ids in texts} == {tokenizer.vocabulary.sep_id}
    with torch.no_grad():
        expected = theirs(**{key: padded[key] for key in ("input_ids", "attention_mask")}).logits[real]
        found = model.logits(*packed(texts))
        again = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours").eval()(padded["input_ids"], real.long()).logits
    size = tokenizer.vocab_size
    assert (found[:, :size] - expected[:, :size]).abs().max() < 1e-4
    assert (again[real][:, :size] - expected[:, :size]).abs().max() < 1e-4
    assert expected[:, :size].std() > 0.5  # there is something to differ
    assert config.vocab_size == -(-size // 64) * 64
    assert (found.softmax(-1)[:, size:] == 0).all()  # blank rows are never predicted
    assert reader.mask_token_id == tokenizer.vocabulary.mask_id
    assert reader.pad_token_id == tokenizer.vocabulary.pad_id


def test_anothers_folder_is_left_to_transformers_until_it_is_imported(folders: dict[str, Path], tmp_path: Path) -> None:
    """Its config.json may ask for pooling that ours has not, so fine-tuning opens it as what it is."""
    import_model(folders["ModernBERT and Ettin"], tmp_path / "ours")
    assert not is_export(folders["ModernBERT and Ettin"])
    assert is_export(tmp_path / "ours")


def test_the_folder_says_what_it_came_from(folders: dict[str, Path], tmp_path: Path) -> None:
    source = shutil.copytree(folders["Zhinao"], tmp_path / "theirs")
    (source / "README.md").write_text("---\nlanguage: zh\nlicense: mit\n---\n# A model\n", encoding="utf-8")
    import_model(source, tmp_path / "ours")
    origin = read_origin(tmp_path / "ours")
    assert origin is not None
    assert (origin["name"], origin["licence"]) == ("theirs", "mit")
    assert (origin["ids"], origin["rows"], origin["rows_there"]) == (345, 384, 448)
    card = (tmp_path / "ours" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: mit\n---\n\n# theirs")
    weights = load_file(tmp_path / "ours" / "model.safetensors")
    assert not weights["model.embeddings.tok_embeddings.weight"][345:].any()
    assert (weights["decoder.bias"][345:] == BLANK_BIAS).all()


def test_an_export_of_ours_may_be_imported(make_perturbed, tokenizer_directory: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from cmbert.export.hf import export_folder

    for norm in ("rmsnorm", "layernorm"):
        model = make_perturbed(norm, vocab_size=load_tokenizer(tokenizer_directory).vocabulary.rows)
        export_folder(
            model.state_dict(), model.config, tokenizer_directory, tmp_path / norm, format="hf", texts=TEXTS,
            card=lambda measured: "",
        )  # fmt: skip
        import_model(tmp_path / norm, tmp_path / f"{norm} again")
        again, config = load_folder(tmp_path / f"{norm} again")
        assert config == model.config
        assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())


def test_weights_in_several_files_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    source = shutil.copytree(folders["WordPiece"], tmp_path / "theirs")
    weights = load_file(source / "model.safetensors")
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, source / file)
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (source / "model.safetensors").unlink()
    import_model(source, tmp_path / "ours")
    import_model(folders["WordPiece"], tmp_path / "whole")
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def change_weights(folder: Path, change) -> None:  # type: ignore[no-untyped-def]
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def run_of_ours(folder: Path) -> None:
    shutil.rmtree(folder)
    (folder / "checkpoints" / "step_000000001").mkdir(parents=True)
    (folder / "checkpoints" / "step_000000001" / "mp_rank_00_model_states.pt").touch()  # DeepSpeed's name, too
    (folder / "resolved.toml").touch()


def megatron(folder: Path) -> None:
    shutil.rmtree(folder)
    (folder / "iter_0000100" / "mp_rank_00").mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("100")


FAULTS = {
    "no folder": (shutil.rmtree, "no such folder; download the model"),
    "a run of ours": (run_of_ours, "a run of ours, which a recipe names as it is: train.init_from"),
    "Megatron's": (megatron, "a checkpoint of Megatron; convert it"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json there: no model folder"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
    "a pickle": (only_a_pickle, "pytorch_model.bin: a pickle, which may run code"),
    "cut off": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9]),
        "model.safetensors: damaged",
    ),
    "no head": (
        lambda folder: change_weights(folder, lambda weights: weights.pop("head.dense.weight")),
        "have no masked-language-model head",
    ),
    "quantised": (
        lambda folder: change_weights(
            folder, lambda weights: weights.update({"head.norm.weight": torch.ones(32, dtype=torch.int8)})
        ),
        "head.norm.weight is torch.int8, no floating-point weight",
    ),
    "untied": (
        lambda folder: change_weights(
            folder, lambda weights: weights.update({"decoder.weight": torch.ones(125, 32)})
        ),
        "decoder.weight is not the embedding",
    ),
    "biases": (lambda folder: change_json(folder / "config.json", attention_bias=True), "attention_bias is True"),
    "another kind": (lambda folder: change_json(folder / "config.json", model_type="bert"), "model_type is 'bert'"),
    "another activation": (
        lambda folder: change_json(folder / "config.json", hidden_activation="silu"), "hidden_activation is 'silu'",
    ),
    "other layers global": (
        lambda folder: change_json(
            folder / "config.json", layer_types=["full_attention", "full_attention", *["sliding_attention"] * 2]
        ),
        "layer_types are not every n-th layer global",
    ),
    "stretched positions": (
        lambda folder: change_json(
            folder / "config.json",
            rope_parameters={kind: {"rope_type": "yarn", "rope_theta": 1e4}
                             for kind in ("full_attention", "sliding_attention")},
        ),
        "rope_type is 'yarn'",
    ),
    "code of its own": (
        lambda folder: change_json(folder / "config.json", auto_map={"AutoModel": "theirs.Model"}),
        "auto_map names code",
    ),
    "another's tokenizer": (
        lambda folder: change_weights(
            folder, lambda weights: weights.update({
                "model.embeddings.tok_embeddings.weight": torch.ones(100, 32), "decoder.bias": torch.ones(100)})
        ),
        "the tokenizer has 125 ids, the embedding 100 rows",
    ),
    "an index without metadata": (
        lambda folder: [
            (folder / "model.safetensors").rename(folder / "model-1.safetensors"),
            (folder / "model.safetensors.index.json").write_text('{"weight_map": {"any": "model-1.safetensors"}}'),
        ],
        "transformers cannot read it",
    ),
    "no mask": (
        lambda folder: (folder / "tokenizer.json").write_text(
            (folder / "tokenizer.json").read_text(encoding="utf-8").replace("[MASK]", "[mask]"), encoding="utf-8"
        ),
        "no token is its MASK",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_refused_in_a_line_and_nothing_written(fault: str, folders: dict[str, Path], tmp_path: Path) -> None:
    spoil, words = FAULTS[fault]
    source = shutil.copytree(folders["WordPiece"], tmp_path / "theirs")
    spoil(source)
    with pytest.raises(CmbertError, match=words) as refusal:
        import_model(source, tmp_path / "ours")
    assert "\n" not in str(refusal.value)
    assert [path for path in tmp_path.iterdir() if path != source] == []


def test_a_model_that_computes_something_else_is_not_written(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def misread(values: dict[str, Any], where: Path, *, rows: int) -> ModelConfig:
        return replace(model_config(values, where, rows=rows), rope_base_local=500.0)

    monkeypatch.setattr(importing, "model_config", misread)
    with pytest.raises(CheckpointError, match="its logits differ"):
        import_model(folders["WordPiece"], tmp_path / "ours")
    assert list(tmp_path.iterdir()) == []
