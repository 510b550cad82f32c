"""ONNX: model.onnx in onnxruntime equals our packed model at any batch and length, and appears only if it does."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import cmbert.export.gate as gate
from cmbert.errors import CheckpointError, ConfigError
from cmbert.export.hf import export_folder
from cmbert.export.onnx import write_onnx

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

TEXTS = ["今天天气很好，我们去公园散步。" * 12, "你好", "语言模型学习词语之间的关系。" * 3, "第五段", "读书" * 60]
VOCAB_SIZE = 384  # of the tests' tokenizer

OUTSIDER = """
import sys
for name in ("cmbert", "torch", "transformers"):
    sys.modules[name] = None  # any import of it fails
import numpy as np
import onnxruntime
from tokenizers import Tokenizer
folder, scratch, *texts = sys.argv[1:]
tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
tokenizer.enable_truncation(512)
session = onnxruntime.InferenceSession(folder + "/model.onnx")
seen = {}
for size in (1, 2, len(texts)):
    tokenizer.enable_padding(length=None)
    batch = tokenizer.encode_batch(texts[:size])
    ids, mask = (np.array([getattr(text, name) for text in batch]) for name in ("ids", "attention_mask"))
    seen |= {f"ids{size}": ids, f"mask{size}": mask}
    (seen[f"logits{size}"],) = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})
np.savez(scratch + "/seen.npz", **seen)
"""


def card(measured):
    return f"onnx {measured.errors['onnx']}\n"


def export(model, tokenizer_directory, folder):
    weights = model.state_dict()
    return export_folder(weights, model.config, tokenizer_directory, folder, format="onnx", texts=TEXTS, card=card)


@pytest.mark.parametrize(
    ("norm", "own"),
    [
        ("rmsnorm", {"modeling_cmbert.py"}),
        pytest.param("layernorm", {"model.onnx.data"}, marks=pytest.mark.slow),
    ],
)
def test_onnxruntime_and_a_tokenizer_are_enough(make_perturbed, tokenizer_directory, tmp_path, monkeypatch, norm, own):
    if norm == "layernorm":  # as the weights of a large model do, these go beside the graph
        monkeypatch.setattr("cmbert.export.onnx.ONE_FILE_BYTES", 1000)
    model = make_perturbed(norm, VOCAB_SIZE)
    folder = tmp_path / "exported"
    measured = export(model, tokenizer_directory, folder)
    assert 0 < measured.errors["onnx"] < measured.allowed / 4
    names = {"README.md", "config.json", "model.onnx", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == names | own
    content = (folder / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content, "the exporter's notes name files of this machine"
    texts = [TEXTS[0] * 3, *TEXTS]  # longer than what the gate has seen: 512 tokens
    command = [sys.executable, "-I", "-c", OUTSIDER, str(folder), str(tmp_path), *texts]
    subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120)
    seen = np.load(tmp_path / "seen.npz")
    assert seen["ids6"].shape == (6, 512)
    for size in (1, 2, 6):
        ids, mask, logits = (torch.from_numpy(seen[f"{name}{size}"]) for name in ("ids", "mask", "logits"))
        cu_seqlens = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).int()
        with torch.no_grad():
            ours = model.logits(ids[mask.bool()], cu_seqlens)
        torch.testing.assert_close(logits[mask.bool()], ours, atol=1e-4, rtol=0)


def test_a_file_that_is_not_the_model_never_appears(make_perturbed, tokenizer_directory, tmp_path, monkeypatch):
    def write_another(model, folder):
        with torch.no_grad():
            model.model.layers[1].attn.Wqkv.weight *= 1.001
        write_onnx(model, folder)

    monkeypatch.setattr(gate, "write_onnx", write_another)
    with pytest.raises(CheckpointError, match="from ours in fp64 by onnx "):
        export(make_perturbed("rmsnorm", VOCAB_SIZE), tokenizer_directory, tmp_path / "exports" / "model")
    assert not list((tmp_path / "exports").iterdir())


def test_an_interrupt_leaves_nothing(make_perturbed, tokenizer_directory, tmp_path, monkeypatch):
    def interrupt(model, folder):
        (folder / "model.onnx").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(gate, "write_onnx", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(make_perturbed("rmsnorm", VOCAB_SIZE), tokenizer_directory, tmp_path / "exports" / "model")
    assert not list((tmp_path / "exports").iterdir())


def test_a_missing_package_is_named(make_perturbed, tokenizer_directory, tmp_path, monkeypatch):
    monkeypatch.setattr("cmbert.export.onnx.is_installed", lambda name: name != "onnxscript")
    with pytest.raises(ConfigError, match=r"onnxscript, not installed: pip install 'cmbert\[eval\]'"):
        export(make_perturbed("rmsnorm", VOCAB_SIZE), tokenizer_directory, tmp_path / "model")
    assert not (tmp_path / "model").exists()
