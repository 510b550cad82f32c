"""The export gate: what transformers and onnxruntime make of an exported folder, against our own model.

How far two right programs lie apart depends on the weights: one residual channel of 255 beside others of 1.2, as large
models grow them, costs fp32 a hundred times the digits. So nothing absolute is allowed, but a multiple of what fp32
costs our own program, found by running it in fp64, too.

Shapes: N texts of a batch, L padded length, T their tokens packed, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from cmbert.errors import CheckpointError
from cmbert.export.onnx import open_onnx, write_onnx
from cmbert.model.heads import MaskedLanguageModel
from cmbert.tokenizer import load_tokenizer

ROUNDINGS = 16.0
"""Largest accepted error of a program in fp32, in roundings: errors of our own fp32 program. Right programs have
0.9 to 1.1; another rotary base, window, norm, order of layers or of a GeGLU's halves 390 and more at large's depth
(tests/cmbert/export/test_gate.py)."""

ROUNDING_SHARE = 1e-2
"""Largest accepted rounding, in standard deviations of the logits: above it no comparison says anything."""

GATE_TOKENS = 512
"""The length of the one text that is read alone: four local windows, and eager attention fits in memory."""

PADDED_TOKENS = 256
"""The longest text of a padded batch: two local windows, so that of the shorter ones' padding some lies within a window
and some outside."""

SHORTENED = 4
"""Into how many lengths the texts are cut, each half of the last: documents alone are longer than any."""

GATE_BATCH = 4
"""Most texts compared at a time; bounds the logits to 4 x 256 x V."""

TOKEN_CHARACTERS = 8
"""More than a token's characters on average: a text of so many for each token is long enough."""

Program = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A masked language model as a function: input_ids (N, L), attention_mask (N, L) -> logits (N, L, V)."""


@dataclass(frozen=True)
class Comparison:
    """What the gate found; all differences are the largest over all tokens and the vocabulary."""

    num_tokens: int
    rounding: float
    """Between our own logits in fp32 and in fp64."""
    errors: Mapping[str, float]
    """Between the fp32 logits of each program ("eager", "sdpa", "onnx") and our own in fp64."""

    @property
    def allowed(self) -> float:
        """Return what no error may exceed."""
        return ROUNDINGS * self.rounding

    def __str__(self) -> str:
        found = ", ".join(f"{name} {error:.1e}" for name, error in self.errors.items())
        return f"{found}; ours in fp32 {self.rounding:.1e}, allowed {self.allowed:.1e}"


@dataclass(frozen=True)
class Batch:
    """Texts as both sides read them, and what our model says of them in fp64."""

    input_ids: torch.Tensor  # (N, L)
    attention_mask: torch.Tensor  # (N, L)
    logits: torch.Tensor  # (T, ids of the tokenizer) float64


@dataclass(frozen=True)
class Reference:
    """What the programs are compared with."""

    batches: list[Batch]
    """Each with its padding at the right and, where there is any, at the left."""
    num_tokens: int
    """Tokens of the texts, padding left out."""
    rounding: float
    spread: float
    """Standard deviation of the logits."""


def prove(folder: Path, model: MaskedLanguageModel, texts: Sequence[str], *, with_onnx: bool) -> Comparison:
    """Compare what transformers loads from `folder`, eager and sdpa, with `model` (fp32, CPU, texts packed).

    Short and long texts lie in one batch, padded at the right and at the left; an empty one is among them.

    with_onnx: once transformers has passed, write model.onnx from its model, and compare that in onnxruntime.
    Raises CheckpointError when a program's error is above what is allowed, or a weight is not finite.
    """
    reference = make_reference(folder, model, texts)
    theirs = load_theirs(folder)
    errors = require_equal(reference, {name: transformers_program(theirs, name) for name in ("eager", "sdpa")})
    if with_onnx:
        write_onnx(theirs, folder)
        errors |= require_equal(reference, {"onnx": open_onnx(folder)})
    return Comparison(reference.num_tokens, reference.rounding, errors)


@torch.no_grad()
def make_reference(folder: Path, model: MaskedLanguageModel, texts: Sequence[str]) -> Reference:
    """Run `model` on short and long texts in fp64 and in fp32. Raises CheckpointError."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    exact, num_ids = copy.deepcopy(model).double(), load_tokenizer(folder).vocab_size  # rows without an id say nothing
    batches, roundings, num_tokens = [], [], 0
    for rows in text_batches(tokenizer, texts, model.config.max_length):
        ids_T = torch.cat(rows)
        cu_seqlens = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0).int()
        logits_TV = exact.logits(ids_T, cu_seqlens)[:, :num_ids]
        roundings.append((model.logits(ids_T, cu_seqlens)[:, :num_ids] - logits_TV).abs().max())
        num_tokens += len(ids_T)
        for side in ("right", "left") if len({len(row) for row in rows}) > 1 else ("right",):
            ids_NL, mask_NL = padded(rows, tokenizer.pad_token_id, side)
            batches.append(Batch(ids_NL, mask_NL, logits_TV))
    rounding = torch.stack(roundings).max().item()
    spread = torch.stack([batch.logits.std() for batch in batches]).max().item()
    # A comparison with NaN is false, so a weight that is not finite is refused here, too.
    if not rounding <= ROUNDING_SHARE * spread:
        raise CheckpointError(
            f"the model cannot be compared: its logits in fp32 and in fp64 differ by {rounding:.1e}, their standard "
            f"deviation is {spread:.1e}; nan or inf means the checkpoint's weights are not finite"
        )
    return Reference(batches, num_tokens, rounding, spread)


def load_theirs(folder: Path) -> Any:
    """Return transformers' masked language model of a folder, fp32."""
    from transformers import AutoModelForMaskedLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    return AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()


def transformers_program(theirs: Any, implementation: str) -> Program:
    """Return a model of transformers in one of its implementations of attention."""

    def logits(input_ids_NL: torch.Tensor, attention_mask_NL: torch.Tensor) -> torch.Tensor:
        theirs.set_attn_implementation(implementation)
        return theirs(input_ids=input_ids_NL, attention_mask=attention_mask_NL).logits

    return logits


@torch.no_grad()
def measure(reference: Reference, program: Program) -> float:
    """Return the largest error of a program's logits over all real tokens."""
    errors = []
    for batch in reference.batches:
        logits_TV = program(batch.input_ids, batch.attention_mask)[batch.attention_mask.bool()]
        errors.append((logits_TV[:, : batch.logits.shape[1]] - batch.logits).abs().max())
    return torch.stack(errors).max().item()


def require_equal(reference: Reference, programs: Mapping[str, Program]) -> dict[str, float]:
    """Return the error of each program; CheckpointError if one is above what is allowed."""
    errors = {name: measure(reference, program) for name, program in programs.items()}
    found = Comparison(reference.num_tokens, reference.rounding, errors)
    if not all(error <= found.allowed for error in errors.values()):
        raise CheckpointError(f"the exported model is not ours: its logits differ from ours in fp64 by {found}")
    return errors


def text_batches(tokenizer: Any, texts: Sequence[str], max_length: int) -> Iterator[list[torch.Tensor]]:
    """Yield ids of texts in batches of which each has long and short ones, then of one long text alone.

    Beside the texts there is an empty one and one of one token.
    """
    long = _long_text(texts)
    special = tokenizer.num_special_tokens_to_add()
    cuts = [PADDED_TOKENS >> index % SHORTENED for index in range(len(texts))]
    wanted = [("", PADDED_TOKENS), (long, special + 1), *zip(texts, cuts, strict=True)]
    rows = [_ids(tokenizer, text, min(tokens, max_length)) for text, tokens in wanted]
    rows.sort(key=len, reverse=True)
    num_batches = -(-len(rows) // GATE_BATCH)
    yield from (rows[first::num_batches] for first in range(num_batches))
    yield [_ids(tokenizer, long, min(GATE_TOKENS, max_length))]


def _ids(tokenizer: Any, text: str, tokens: int) -> torch.Tensor:
    return torch.tensor(tokenizer(text, truncation=True, max_length=tokens)["input_ids"])


def padded(rows: Sequence[torch.Tensor], pad_id: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, both (N, L)."""
    ids_NL = pad_sequence(list(rows), batch_first=True, padding_value=pad_id, padding_side=side)
    masks = [torch.ones_like(row) for row in rows]
    return ids_NL, pad_sequence(masks, batch_first=True, padding_value=0, padding_side=side)


def _long_text(texts: Sequence[str]) -> str:
    """Return the texts one after the other, again and again: short ones would not reach out of a local window."""
    joined = "".join(texts) or " "
    return joined * (TOKEN_CHARACTERS * GATE_TOKENS // len(joined) + 1)
