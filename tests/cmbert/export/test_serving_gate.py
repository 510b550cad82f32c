"""The gate of served models: pooling as a loop does it, and what differs from the model is refused."""

import json

import numpy as np
import pytest
import torch

import cmbert.export.serving_gate as serving_gate
from cmbert.errors import CheckpointError
from cmbert.export.onnx import Logits, SentenceVectors
from cmbert.export.serving import _load, read_served
from cmbert.export.serving_card import PROBLEMS

TEXTS = ["今天天气很好，我们去公园散步。" * 12, "你好"]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling_equals_a_loop(pooling):
    class Encoder(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            self.last_hidden_state = hidden_NLD
            return self

    hidden_NLD = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(0))
    mask_NL = torch.tensor([[1] * 7, [1] * 3 + [0] * 4, [0] * 5 + [1] * 2, [0] * 3 + [1] + [0] * 3])
    seen_ND = SentenceVectors(Encoder(), pooling)(mask_NL, mask_NL)
    for hidden_LD, mask_L, seen_D in zip(hidden_NLD, mask_NL, seen_ND, strict=True):
        real = [row for row, is_real in zip(hidden_LD.double(), mask_L.tolist(), strict=True) if is_real]
        vector = real[0] if pooling == "cls" else sum(real) / len(real)
        torch.testing.assert_close(seen_D.double(), vector / vector.square().sum().sqrt(), atol=1e-6, rtol=0)


def pooled(pool):
    """A program whose vectors are pooled from the hidden states by `pool`."""

    @torch.no_grad()
    def run(program, ids, mask):
        hidden_NLD = program.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return torch.nn.functional.normalize(pool(hidden_NLD), dim=-1)

    return run


def right(program, ids, mask):
    return program(ids, mask)


def blind(program, ids, mask):
    return program(ids, torch.ones_like(mask))


FAULTS = {
    "no mask": ("mean", blind),
    "mean over padding": ("mean", pooled(lambda hidden_NLD: hidden_NLD.mean(1))),
    "padding as [CLS]": ("cls", pooled(lambda hidden_NLD: hidden_NLD[:, 0])),
    "length not 1": ("mean", lambda program, ids, mask: 1.001 * program(ids, mask)),
    "nan": ("mean", lambda program, ids, mask: torch.nan * program(ids, mask)),
}


@torch.no_grad()
def test_vectors_that_differ_from_the_model_are_refused(make_vectors, monkeypatch):
    """With the model itself in onnxruntime's place: right as it is, wrong with each fault."""
    pytest.importorskip("sentence_transformers")
    served = read_served(make_vectors())
    network = _load(served)
    programs = {pooling: SentenceVectors(network, pooling) for pooling in ("mean", "cls")}

    def prove(pooling, run):
        program = programs[pooling]
        monkeypatch.setattr(serving_gate, "open_onnx", lambda folder: lambda *inputs: run(program, *inputs))
        return serving_gate.prove_program(program, served.folder, TEXTS, per_token=False)

    for pooling in programs:
        assert prove(pooling, right).least_cosine == pytest.approx(1, abs=1e-6)
    for pooling, fault in FAULTS.values():
        with pytest.raises(CheckpointError, match=r"model\.onnx is not the model: .* by onnx "):
            prove(pooling, fault)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["Sequence", "Token"])
def test_labels_that_differ_from_the_model_are_refused(make_classifier, monkeypatch, kind):
    served = read_served(make_classifier(kind))
    program = Logits(_load(served))
    assert served.head == {"Sequence": "texts", "Token": "tokens"}[kind]
    for run in (right, blind):
        monkeypatch.setattr(serving_gate, "open_onnx", lambda folder, run=run: lambda *inputs: run(program, *inputs))
        if run is right:
            found = serving_gate.prove_program(program, served.folder, TEXTS, per_token=kind == "Token")
            assert found.least_cosine is None
            assert found.comparison.errors["onnx"] < found.comparison.allowed / 4
        else:
            with pytest.raises(CheckpointError, match="by onnx "):
                serving_gate.prove_program(program, served.folder, TEXTS, per_token=kind == "Token")


@pytest.mark.parametrize(
    ("problem", "said"),
    [("multi_label_classification", ["['服务', '位置'] [", "[] ["]), ("regression", ["服务 0.5", "服务 -1.0"])],
)
def test_the_card_prints_several_labels_and_numbers(problem, said, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "服务", "1": "位置"}}), encoding="utf-8")
    logits = np.array([[0.5, 2.0], [-1.0, -0.5]])
    exec(PROBLEMS[problem], {"json": json, "np": np, "folder": str(tmp_path), "logits": logits})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True))
