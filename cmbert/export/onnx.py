"""Models as ONNX files: writing them from a transformers model, and running them.

Shapes: N texts of a batch, L padded length, V vocabulary, C labels, D width.
"""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from cmbert.environment import is_installed
from cmbert.errors import ConfigError

ONNX_FILE = "model.onnx"
INPUTS = ("input_ids", "attention_mask")

OPSET = 18
"""The set that torch's exporter writes by itself (newer ones are conversions of it); onnxruntime reads it from 1.14."""

ONE_FILE_BYTES = 1_900_000_000
"""Weights above this go to a second file, model.onnx.data: protobuf ends at 2^31 bytes, graph included."""

TRACED_LENGTH = 37
"""Both sizes are symbols in the graph; the gate runs others."""

PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Pooling = Literal["mean", "cls"]


class Logits(torch.nn.Module):
    """A transformers model with a head as a function of two tensors that returns one."""

    output = "logits"

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids_NL: torch.Tensor, attention_mask_NL: torch.Tensor) -> torch.Tensor:
        """(N, L), (N, L) -> (N, L, V); of a classifier (N, C), of one of tokens (N, L, C)."""
        return self.model(input_ids=input_ids_NL, attention_mask=attention_mask_NL).logits


class SentenceVectors(torch.nn.Module):
    """An encoder of transformers as a function of two tensors that returns one vector of length 1 for each text.

    The mean of the hidden states of a text's tokens, or that of its first token, as sentence-transformers pools them.
    """

    output = "sentence_embedding"

    def __init__(self, model: Any, pooling: Pooling):
        super().__init__()
        self.model, self.pooling = model, pooling

    def forward(self, input_ids_NL: torch.Tensor, attention_mask_NL: torch.Tensor) -> torch.Tensor:
        """(N, L), (N, L) -> (N, D)."""
        hidden_NLD = self.model(input_ids=input_ids_NL, attention_mask=attention_mask_NL).last_hidden_state
        if self.pooling == "cls":
            first_N11 = attention_mask_NL.int().argmax(dim=1)[:, None, None]  # not 0 where a text is padded at the left
            pooled_ND = hidden_NLD.gather(1, first_N11.expand(-1, 1, hidden_NLD.shape[-1]))[:, 0]
        else:
            real_NL1 = attention_mask_NL[..., None].to(hidden_NLD.dtype)
            pooled_ND = (hidden_NLD * real_NL1).sum(dim=1) / real_NL1.sum(dim=1).clamp(min=1)
        return torch.nn.functional.normalize(pooled_ND, dim=-1)


def require_onnx() -> None:
    """Raise ConfigError when a package that the export needs is missing."""
    missing = [name for name in PACKAGES if not is_installed(name)]
    if missing:
        raise ConfigError(f"--format onnx needs {', '.join(missing)}, not installed: pip install 'cmbert[eval]'")


def write_onnx(model: Any, folder: Path) -> None:
    """Write `folder`/model.onnx: the fp32 logits of a transformers model with a head, in sdpa attention."""
    write_program(Logits(model), folder)


def write_program(program: Logits | SentenceVectors, folder: Path) -> None:
    """Write `folder`/model.onnx: what `program` returns, in fp32 and sdpa attention, under the name of its output.

    Inputs are input_ids and attention_mask, (N, L) int64, for any N and L.
    """
    program.model.set_attn_implementation("sdpa")
    shape = (2, TRACED_LENGTH)
    example = (torch.ones(shape, dtype=torch.int64), torch.ones(shape, dtype=torch.int64))
    sizes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=1)}
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)  # it warns of vision packages that text does not need
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's own, of its internals
            exported = torch.onnx.export(
                program.eval(),
                example,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=INPUTS,
                output_names=[program.output],
                dynamic_shapes=(sizes, sizes),
            )
    finally:
        exporter_log.setLevel(level)
    assert exported is not None
    _forget_sources(exported.model)
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in program.parameters())
    exported.save(folder / ONNX_FILE, external_data=num_bytes > ONE_FILE_BYTES)


def _forget_sources(model: Any) -> None:
    """Drop what the exporter notes of every operator: the stack it came from, with the paths of this machine."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


def open_onnx(folder: Path) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the model in `folder`, run by onnxruntime on the CPU: ids (N, L), mask (N, L) -> its output."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])

    def run(input_ids_NL: torch.Tensor, attention_mask_NL: torch.Tensor) -> torch.Tensor:
        feed = dict(zip(INPUTS, (input_ids_NL.numpy(), attention_mask_NL.numpy()), strict=True))
        return torch.from_numpy(session.run(None, feed)[0])

    return run
