"""Folders that are served: model.onnx gives the vectors and labels that the libraries give, or it does not appear."""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tokenizers
import torch

import cmbert.export.serving as serving
from cmbert.cli import main
from cmbert.errors import CheckpointError
from cmbert.export.onnx import write_program
from cmbert.export.release import export
from tests.cards import run_snippets

for package in ("onnx", "onnxscript", "sentence_transformers"):
    pytest.importorskip(package)

VOCAB_SIZE = 384  # of the tests' tokenizer
TEXTS = ["今天天气很好，我们去公园散步。" * 12, "你好", "语言模型学习词语之间的关系。" * 3, ""]
CUT = 96  # tokens, of what make_vectors makes


def onnx_outputs(folder: Path, texts: list[str], side: str = "right") -> tuple[np.ndarray, np.ndarray]:
    """Return what model.onnx gives, and the mask."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(CUT)
    tokenizer.enable_padding(direction=side)
    batch = tokenizer.encode_batch(texts)
    ids, mask = (np.array([getattr(text, name) for text in batch]) for name in ("ids", "attention_mask"))
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return session.run(None, {"input_ids": ids, "attention_mask": mask})[0], mask


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def cards_output(folder: Path, tmp_path: Path) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    card = (folder / "README.md").read_text(encoding="utf-8")
    (printed,) = run_snippets(card, folder, environment, "torch", "transformers", "sentence_transformers")
    return printed


@pytest.mark.parametrize(
    ("norm", "pooling"),
    [
        ("rmsnorm", "mean"),
        pytest.param("layernorm", "mean", marks=pytest.mark.slow),
        pytest.param("layernorm", "cls", marks=pytest.mark.slow),
    ],
)
def test_sentence_vectors_are_those_of_sentence_transformers(make_vectors, tmp_path, norm, pooling):
    from sentence_transformers import SentenceTransformer

    source, output = make_vectors(norm, pooling), tmp_path / "onnx"
    measured = export(source, output, "onnx")
    assert 0 < measured.errors["onnx"] < measured.allowed / 4
    code = {"modeling_cmbert.py"} if norm == "rmsnorm" else set()
    files = {"README.md", "config.json", "model.onnx", "tokenizer.json", "tokenizer_config.json"}
    assert names_in(output) == files | code
    assert json.loads((output / "tokenizer_config.json").read_text())["model_max_length"] == CUT
    theirs = SentenceTransformer(str(source), trust_remote_code=norm == "rmsnorm", device="cpu")
    expected = theirs.encode(TEXTS, normalize_embeddings=True)
    for side in ("right", "left"):
        seen, _ = onnx_outputs(output, TEXTS, side)
        np.testing.assert_allclose(seen, expected, atol=2e-5)
        np.testing.assert_allclose(np.linalg.norm(seen, axis=1), 1, atol=1e-5)
    session = onnxruntime.InferenceSession(output / "model.onnx")
    assert [found.name for found in session.get_outputs()] == ["sentence_embedding"]
    assert [found.name for found in session.get_inputs()] == ["input_ids", "attention_mask"]
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    assert "# 小模型: model.onnx" in card
    assert "## Results\n\nSpearman .5" in card
    pair = theirs.encode(["今天天气很好", "外面阳光明媚"], normalize_embeddings=True)
    name, cosine = cards_output(output, tmp_path).split()
    assert name == "cosine"
    assert float(cosine) == pytest.approx(float(pair[0] @ pair[1]), abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "norm", "settings"),
    [
        ("Sequence", "rmsnorm", {}),
        pytest.param("Sequence", "layernorm", {"classifier_pooling": "cls", "num_labels": 2}, marks=pytest.mark.slow),
        pytest.param("Sequence", "layernorm", {"num_labels": 2}, marks=pytest.mark.slow),
        pytest.param("Token", "rmsnorm", {}, marks=pytest.mark.slow),
        pytest.param("Token", "layernorm", {}, marks=pytest.mark.slow),
    ],
    ids=["texts", "of the first token", "without names", "tokens", "tokens, stock"],
)
def test_logits_are_those_of_transformers(make_classifier, tmp_path, kind, norm, settings):
    import transformers

    source, output = make_classifier(kind, norm, **settings), tmp_path / "onnx"
    measured = export(source, output, "onnx")
    assert 0 < measured.errors["onnx"] < measured.allowed / 4
    made = getattr(transformers, f"AutoModelFor{kind}Classification")
    model = made.from_pretrained(source, trust_remote_code=norm == "rmsnorm")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=True)
    seen, mask = onnx_outputs(output, TEXTS)
    for text, row, real in zip(TEXTS, seen, mask, strict=True):
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=CUT)
        with torch.inference_mode():
            expected = model(inputs["input_ids"], inputs["attention_mask"]).logits[0].numpy()
        np.testing.assert_allclose(row[real.astype(bool)] if kind == "Token" else row, expected, atol=2e-5)
    labels = ["LABEL_0", "LABEL_1"] if "num_labels" in settings else ["差评", "中评", "好评"]
    assert json.loads((output / "config.json").read_text())["id2label"] == {str(i): n for i, n in enumerate(labels)}
    lines = cards_output(output, tmp_path).splitlines()
    assert len(lines) == 2 if kind == "Sequence" else len(lines) > 4
    assert all(any(label in line for label in labels) for line in lines)


@pytest.mark.slow
def test_an_exported_folder_gives_the_logits_of_its_model(make_base, tmp_path):
    from cmbert.model.folder import load_folder

    source, output = make_base(), tmp_path / "onnx"
    measured = export(source, output, "onnx")
    assert set(measured.errors) == {"eager", "sdpa", "onnx"}
    model, _ = load_folder(source)
    seen, mask = onnx_outputs(output, TEXTS)
    tokenizer = tokenizers.Tokenizer.from_file(str(output / "tokenizer.json"))
    tokenizer.enable_truncation(CUT)
    for text, logits, real in zip(TEXTS, seen, mask, strict=True):
        ids = torch.tensor(tokenizer.encode(text).ids)
        ours = model.logits(ids, torch.tensor([0, len(ids)], dtype=torch.int32)).detach().numpy()
        np.testing.assert_allclose(logits[real.astype(bool)], ours, atol=1e-4)
    assert len(cards_output(output, tmp_path).splitlines()) == 5


def rewrite(folder: Path, name: str, **changes) -> None:
    values = json.loads((folder / name).read_text(encoding="utf-8"))
    values = values | changes if isinstance(values, dict) else [*values, changes]
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: rewrite(folder, "1_Pooling/config.json", pooling_mode="max"),
            "pooling max: model.onnx can have",
        ),
        (lambda folder: rewrite(folder, "modules.json", type="a.Dense", path=""), "Transformer, Pooling, Dense: only"),
        (lambda folder: (folder / "modules.json").write_text("{"), "modules.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"half"), "model.safetensors: damaged"),
        (
            lambda folder: rewrite(folder, "config.json", num_hidden_layers=3, layer_types=None),
            "do not fit config.json",
        ),
        (lambda folder: rewrite(folder, "config.json", model_type="bert"), "model_type is 'bert'"),
        (lambda folder: (folder / "modeling_cmbert.py").write_text("1 / 0"), "code that is not ours"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
    ],
    ids=["pooling", "module", "modules.json", "no weights", "damaged", "other weights", "bert", "code", "tokenizer"],
)
def test_what_cannot_be_served_is_one_line(make_vectors, tmp_path, capsys, spoil, message):
    source = make_vectors()
    spoil(source)
    capsys.readouterr()
    assert main(["export", str(source), "--format", "onnx", "--output", str(tmp_path / "exports" / "onnx")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "exports").exists()


def test_other_folders_are_one_line(make_classifier, make_base, tmp_path, capsys):
    source = make_classifier()
    (tmp_path / "there").mkdir()
    cases = [
        (source, "there", lambda: None, "there exists"),
        (make_base("layernorm"), "there", lambda: None, "there exists"),
        (source, "new", lambda: rewrite(source, "config.json", architectures=["XForQuestionAnswering"]), "onnx takes"),
        (source, "new", lambda: rewrite(source, "config.json", architectures=None), "no architectures"),
        (tmp_path / "there", "new", lambda: None, "no checkpoint there"),
    ]
    for folder, output, spoil, message in cases:
        spoil()
        capsys.readouterr()
        assert main(["export", str(folder), "--format", "onnx", "--output", str(tmp_path / output)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "new").exists()
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.slow
def test_a_file_that_is_not_the_model_never_appears(make_vectors, tmp_path, monkeypatch):
    def write_another(program, folder):
        weight = program.model.layers[1].attn.Wqkv.weight
        with torch.no_grad():
            weight *= 1.001
            write_program(program, folder)
            weight /= 1.001

    monkeypatch.setattr(serving, "write_program", write_another)
    with pytest.raises(CheckpointError, match=r"model\.onnx is not the model: .* by onnx "):
        export(make_vectors(), tmp_path / "exports" / "onnx", "onnx")
    assert not list((tmp_path / "exports").iterdir())
