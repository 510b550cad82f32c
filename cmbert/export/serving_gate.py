"""The gate of a served model: onnxruntime's output of padded texts against the model's own of each text alone, in fp64.

Shapes: N texts of a batch, L padded length, R rows of outputs: the texts, or all real tokens of them.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cmbert.errors import CheckpointError
from cmbert.export.gate import ROUNDING_SHARE, Comparison, padded, text_batches
from cmbert.export.onnx import Logits, SentenceVectors, open_onnx
from cmbert.model.config_json import runs_our_code


@dataclass(frozen=True)
class Proof:
    """What the gate found."""

    comparison: Comparison
    least_cosine: float | None = None
    """Of vectors: between onnxruntime's and those in fp64."""


@torch.no_grad()
def prove_program(program: Logits | SentenceVectors, folder: Path, texts: Sequence[str], *, per_token: bool) -> Proof:
    """Compare model.onnx and the tokenizer of `folder` with `program` (fp32, CPU), by the rule of gate.py.

    Short and long texts lie in one batch, padded at the right and at the left; onnxruntime reads them so, `program`
    each alone. per_token: the output has a row for each token, not for each text. Raises CheckpointError when the error
    is above what is allowed, or a number is not finite.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=runs_our_code(folder))
    exact, onnx = copy.deepcopy(program).double(), open_onnx(folder)
    config = program.model.config
    # transformers takes the first position of a row for [CLS], padding or not
    sides = ("right",) if isinstance(program, Logits) and _reads_first(config) and not per_token else ("right", "left")
    errors, roundings, outputs, cosines, num_tokens = [], [], [], [], 0
    for rows in text_batches(tokenizer, texts, config.max_position_embeddings):
        num_tokens += sum(map(len, rows))
        expected_RC, ours_RC = _alone(exact, rows, per_token), _alone(program, rows, per_token)
        roundings.append((ours_RC - expected_RC).abs().max())
        outputs.append(expected_RC)
        for side in sides:
            ids_NL, mask_NL = padded(rows, tokenizer.pad_token_id, side)
            seen = onnx(ids_NL, mask_NL)
            seen_RC = (seen[mask_NL.bool()] if per_token else seen).double()
            errors.append((seen_RC - expected_RC).abs().max())
            cosines.append(torch.nn.functional.cosine_similarity(seen_RC, expected_RC, dim=-1).min())
    rounding, spread = torch.stack(roundings).max().item(), torch.cat(outputs).std().item()
    found = Comparison(num_tokens, rounding, {"onnx": torch.stack(errors).max().item()})
    # A comparison with NaN is false, so a weight that is not finite is refused here, too.
    if not rounding <= ROUNDING_SHARE * spread:
        raise CheckpointError(
            f"the model cannot be compared: its outputs in fp32 and in fp64 differ by {rounding:.1e}, their standard "
            f"deviation is {spread:.1e}; nan or inf means that weights are not finite"
        )
    if not found.errors["onnx"] <= found.allowed:
        raise CheckpointError(f"model.onnx is not the model: its outputs differ from those in fp64 by {found}")
    return Proof(found, torch.stack(cosines).min().item() if isinstance(program, SentenceVectors) else None)


def _alone(program: torch.nn.Module, rows: Sequence[torch.Tensor], per_token: bool) -> torch.Tensor:
    """Return the outputs (R, C) of texts that are read one by one, without padding."""
    outputs = [program(row[None], torch.ones_like(row)[None]) for row in rows]
    return torch.cat([output[0] if per_token else output for output in outputs])


def _reads_first(config: object) -> bool:
    return getattr(config, "classifier_pooling", "mean") == "cls"
