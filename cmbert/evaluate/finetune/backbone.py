"""Any encoder as the fine-tuning sees it: texts -> ids, and a packed batch of ids -> hidden states.

Ours reads the batch as it is, without padding; an encoder of transformers gets it padded, and the padding is taken out
again, so that heads, batches and losses are the same for all. Shapes: P pieces, L longest, T their tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from cmbert.errors import ConfigError
from cmbert.model.encoder import Encoder
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.init import initialise


@dataclass(frozen=True)
class Piece:
    """One text, or pair of texts, as the model reads it."""

    ids: list[int]
    type_ids: list[int]
    """Which text a token belongs to, for encoders that are told."""
    offsets: list[tuple[int, int]]
    """Characters of each token in its own text; (0, 0) for special tokens."""
    second: list[bool]
    """Whether the token is one of the second text's."""
    whole: bool
    """Whether nothing was cut."""


class Backbone(nn.Module):
    """An encoder with its tokenizer."""

    def __init__(self, encoder: nn.Module, tokenizer: Any, hidden_size: int, max_length: int):
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer
        self.hidden_size, self.max_length = hidden_size, max_length

    def forward(self, ids_T: torch.Tensor, type_ids_T: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Packed ids (T,) int64 of pieces of the given lengths -> hidden states (T, D)."""
        bounds = torch.tensor([0, *lengths]).cumsum(0).int()
        if isinstance(self.encoder, Encoder):
            return self.encoder(ids_T, bounds)
        real_PL = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
        real_PL = real_PL.to(ids_T.device)
        inputs = {"input_ids": pad_sequence(ids_T.split(list(lengths)), batch_first=True), "attention_mask": real_PL}
        if "token_type_ids" in self.tokenizer.model_input_names:
            inputs["token_type_ids"] = pad_sequence(type_ids_T.split(list(lengths)), batch_first=True)
        inputs["input_ids"][~real_PL] = self.tokenizer.pad_token_id
        return self.encoder(**inputs).last_hidden_state[real_PL]

    def read(self, texts: Sequence[tuple[str, str | None]], max_length: int) -> list[Piece]:
        """Encode texts; those that do not fit into `max_length` tokens lose their end (pairs: the longer one's)."""
        single, pairs = (
            [text for text, other in texts if other is None],
            [text for text in texts if text[1] is not None],
        )
        options = {
            "truncation": "longest_first",
            "max_length": max_length,
            "return_offsets_mapping": True,
            "return_token_type_ids": True,
            "split_special_tokens": True,  # a text's own "[MASK]" is text
        }
        found: dict[bool, Any] = {}
        if single:
            found[False] = iter(token_rows(self.tokenizer(single, **options)))
        if pairs:
            firsts, seconds = zip(*pairs, strict=True)
            found[True] = iter(token_rows(self.tokenizer(list(firsts), list(seconds), **options)))
        return [next(found[other is not None]) for _, other in texts]


def token_rows(batch: Any) -> list[Piece]:
    """Return what a tokenizer of transformers made of each text."""
    pieces = []
    for index, ids in enumerate(batch["input_ids"]):
        texts = batch.sequence_ids(index)
        pieces.append(
            Piece(
                ids=ids,
                type_ids=batch["token_type_ids"][index],
                offsets=[tuple(pair) for pair in batch["offset_mapping"][index]],
                second=[text == 1 for text in texts],
                whole=not batch.encodings[index].overflowing,
            )
        )
    return pieces


def our_backbone(model: MaskedLanguageModel, tokenizer_directory: Path, *, untrained: bool) -> Backbone:
    """Wrap our encoder; `untrained` gives the same network fresh weights."""
    if untrained:
        initialise(model, 0)
    tokenizer = load_auto_tokenizer(str(tokenizer_directory))
    return Backbone(model.model, tokenizer, model.config.hidden_size, model.config.max_length)


def their_backbone(name: str, *, untrained: bool) -> Backbone:
    """Load an encoder of transformers from a folder, or by its name from the hub or its cache.

    Code of a model is run only from a folder. Raises ConfigError if there is no such model, or it has no tokenizer.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    trust = Path(name).is_dir()
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust)
        if untrained:
            torch.manual_seed(0)
            encoder = AutoModel.from_config(config, trust_remote_code=trust)
        else:
            encoder = AutoModel.from_pretrained(name, config=config, trust_remote_code=trust, dtype=torch.float32)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"--model {name}: neither a run, a checkpoint nor a model of transformers: {first}"
        ) from error
    tokenizer = load_auto_tokenizer(name)
    rows = encoder.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ConfigError(f"--model {name}: its tokenizer has {len(tokenizer)} ids, the model {rows}; use its own")
    return Backbone(encoder, tokenizer, config.hidden_size, config.max_position_embeddings)


def load_auto_tokenizer(name: str) -> Any:
    """Load a fast tokenizer of transformers from a folder or by name. Raises ConfigError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=Path(name).is_dir())
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or ["?"])[0]
        raise ConfigError(f"--model {name}: has no tokenizer that transformers can load: {first}") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes an empty one when the files are missing
        raise ConfigError(f"--model {name}: has no tokenizer; put its files beside the model")
    if not tokenizer.is_fast:
        raise ConfigError(f"--model {name}: its tokenizer gives no offsets; put a tokenizer.json beside the model")
    return tokenizer
