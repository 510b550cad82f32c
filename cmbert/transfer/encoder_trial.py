"""What an encoder from outside can do, found by trying it: how many tokens it takes, and what it makes of two texts.

Shapes: N texts, L tokens of the longest, D width.
"""

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cmbert.errors import CheckpointError

logger = logging.getLogger(__name__)

LEAST_TOKENS = 32
"""Fewest tokens that an encoder must take: a question, a window of its text, and what stands between."""
PROBE = ("今天天气很好，我们去公园散步。", "不喜欢")
PROBE_TOKENS = 24  # of its longest text
SAME_SHARE = 1e-6  # of the states' size by which rounding may change them
PADDING_SHARE = 1e-3  # of the states' size by which padding may change them (ours; rounding is 1e-6)


@dataclass(frozen=True)
class OutsideEncoder:
    """An encoder that was opened and tried."""

    network: Any
    """input_ids, attention_mask and, if `takes_types`, token_type_ids -> last_hidden_state; fp32 on the CPU."""
    tokenizer: Any
    """Pads and cuts at the right."""
    hidden_size: int
    max_length: int | None
    """Most tokens that it takes; None: no limit."""
    takes_types: bool


def most_tokens(name: str, network: Any) -> int | None:
    """Return the most tokens that an encoder takes, special ones among them; None if nothing limits them.

    RoBERTa and its kin count positions from the padding id + 1: of 514 they use 512. Raises CheckpointError for a
    max_position_embeddings that is no number, or below LEAST_TOKENS.
    """
    limits = []
    said = getattr(network.config, "max_position_embeddings", None)
    if said is not None and (isinstance(said, bool) or not isinstance(said, int)):
        raise CheckpointError(f"{name}: config.json's max_position_embeddings is {said!r}, no number; mend it")
    if said is not None and said > 0:  # XLNet says -1
        limits.append(said)
    for path, module in network.named_modules():
        if path.rpartition(".")[2] == "position_embeddings" and isinstance(module, torch.nn.Embedding):
            padding = module.padding_idx
            limits.append(module.num_embeddings - (0 if padding is None else padding + 1))
    if limits and min(limits) < LEAST_TOKENS:
        raise CheckpointError(
            f"{name}: takes {min(limits)} tokens (config.json's max_position_embeddings), at least {LEAST_TOKENS} are "
            "needed; name another encoder"
        )
    return min(limits, default=None)


def takes_types(network: Any, tokenizer: Any) -> bool:
    """Return whether an encoder is told which text a token belongs to: it can be, its tokenizer does, it has two."""
    if "token_type_ids" not in inspect.signature(network.forward).parameters:
        return False
    kinds = getattr(network.config, "type_vocab_size", None)
    return "token_type_ids" in tokenizer.model_input_names and (not isinstance(kinds, int) or kinds > 1)


def try_texts(name: str, network: Any, tokenizer: Any) -> OutsideEncoder:
    """Read two texts together and alone: finite states of every token, that depend on what follows, not on padding."""
    types = takes_types(network, tokenizer)
    limit = most_tokens(name, network)
    batch = tokenizer(
        [PROBE[0], PROBE[1]],
        [PROBE[1], PROBE[1]],
        padding=True,
        truncation=True,
        max_length=PROBE_TOKENS,
        return_token_type_ids=types,
        return_tensors="pt",
    )
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", *(["token_type_ids"] if types else []))}
    states_2LD = probe(name, network, inputs)
    short = int(inputs["attention_mask"][1].sum())
    alone_1LD = probe(name, network, {key: value[1:, :short] for key, value in inputs.items()})
    spread = states_2LD.std().item()
    moved = (states_2LD[1, :short] - alone_1LD[0]).abs().max().item()
    if moved > PADDING_SHARE * spread:
        logger.warning("%s: its states depend on the padding of a batch (by %.1e of their size)", name, moved / spread)
    return OutsideEncoder(network, tokenizer, states_2LD.shape[-1], limit, types)


@torch.no_grad()
def probe(name: str, network: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return hidden states (N, L, D). Raises CheckpointError unless each token has one, finite, that sees the last."""
    states = getattr(network(**inputs), "last_hidden_state", None)
    ids = inputs["input_ids"]
    if not isinstance(states, torch.Tensor) or states.shape[:2] != ids.shape or states.ndim != 3:
        raise CheckpointError(f"{name}: {network.config.model_type} gives no hidden state for each token; no encoder")
    if not states.isfinite().all():
        raise CheckpointError(f"{name}: its hidden states are not finite; the weights are damaged, download them again")
    others = ids.clone()
    real = inputs["attention_mask"][0].nonzero().flatten()
    others[0, real[1:]] = ids[0, real[0]]
    first_D, then_D = states[0, real[0]], network(**{**inputs, "input_ids": others}).last_hidden_state[0, real[0]]
    if (first_D - then_D).abs().max() <= SAME_SHARE * first_D.std():
        raise CheckpointError(
            f"{name}: its first token does not see those behind it: {network.config.model_type} reads from left to "
            "right, as a decoder; name an encoder"
        )
    return states
