"""Masked language models as ONNX files: writing them from a transformers model, and running them.

Shapes: N texts of a batch, L padded length, V vocabulary.
"""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


class _Logits(torch.nn.Module):
    """A transformers model as a function of two tensors that returns one."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids_NL: torch.Tensor, attention_mask_NL: torch.Tensor) -> torch.Tensor:
        """(N, L), (N, L) -> (N, L, V)."""
        return self.model(input_ids=input_ids_NL, attention_mask=attention_mask_NL).logits


def require_onnx() -> None:
    """Raise ConfigError when a package that the export needs is missing."""
    missing = [name for name in PACKAGES if not is_installed(name)]
    if missing:
        raise ConfigError(f"--format onnx needs {', '.join(missing)}, not installed: pip install 'cmbert[eval]'")


def write_onnx(model: Any, folder: Path) -> None:
    """Write `folder`/model.onnx: the fp32 logits (N, L, V) of a transformers masked language model in sdpa attention.

    Inputs are input_ids and attention_mask, (N, L) int64, for any N and L.
    """
    model.set_attn_implementation("sdpa")
    shape = (2, TRACED_LENGTH)
    example = (torch.ones(shape, dtype=torch.int64), torch.ones(shape, dtype=torch.int64))
    sizes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=1)}
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)  # it warns of vision packages that text does not need
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's own, of its internals
            program = torch.onnx.export(
                _Logits(model).eval(),
                example,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=INPUTS,
                output_names=["logits"],
                dynamic_shapes=(sizes, sizes),
            )
    finally:
        exporter_log.setLevel(level)
    assert program is not None
    _forget_sources(program.model)
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    program.save(folder / ONNX_FILE, external_data=num_bytes > ONE_FILE_BYTES)


def _forget_sources(model: Any) -> None:
    """Drop what the exporter notes of every operator: the stack it came from, with the paths of this machine."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


def open_onnx(folder: Path) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the model in `folder`, run by onnxruntime on the CPU: ids (N, L), mask (N, L) -> logits (N, L, V)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])

    def logits(input_ids_NL: torch.Tensor, attention_mask_NL: torch.Tensor) -> torch.Tensor:
        feed = dict(zip(INPUTS, (input_ids_NL.numpy(), attention_mask_NL.numpy()), strict=True))
        return torch.from_numpy(session.run(None, feed)[0])

    return logits
