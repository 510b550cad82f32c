"""Rows of the embedding and of the decoder's bias, one for each id: blank ones behind the ids, new ones for new ids.

A blank row has no token: it is zero, and its bias makes its probability zero to the last bit, so that neither loss nor
gradient knows of it.
"""

from collections.abc import Mapping, Sequence

import torch

from cmbert.model.heads import DECODER, EMBEDDING

DECODER_BIAS = "decoder.bias"
BLANK_BIAS = -1e4
"""exp(-1e4) is 0 in fp32 and fp64, beside any logit that a model gives; bf16 and fp16 hold it."""


def with_rows(weights: Mapping[str, torch.Tensor], size: int, rows: int) -> dict[str, torch.Tensor]:
    """Return weights with `rows` rows: the first `size` of theirs, then blank ones. size: at most what they have."""
    embedding, bias = weights[EMBEDDING], weights[DECODER_BIAS]
    assert size <= rows, "a row for each id"
    assert size <= len(embedding), "no row is made up here"
    fitted = {
        EMBEDDING: embedding.new_zeros(rows, embedding.shape[1]),
        DECODER_BIAS: bias.new_full((rows,), BLANK_BIAS),
    }
    fitted[EMBEDDING][:size], fitted[DECODER_BIAS][:size] = embedding[:size], bias[:size]
    fitted |= {DECODER: fitted[EMBEDDING]} if DECODER in weights else {}
    return {**weights, **fitted}


def with_new_ids(
    weights: Mapping[str, torch.Tensor], size: int, parts: Sequence[Sequence[int]], rows: int
) -> dict[str, torch.Tensor]:
    """Return weights with a row for each of `parts` behind the first `size`, then blank ones up to `rows`.

    parts: for each new id those that spelled the same text before; its row is their mean.
    """
    embedding, bias = weights[EMBEDDING], weights[DECODER_BIAS]
    grown = dict(weights)
    if parts:
        grown[EMBEDDING] = torch.cat([embedding[:size], torch.stack([embedding[list(ids)].mean(0) for ids in parts])])
        grown[DECODER_BIAS] = torch.cat([bias[:size], torch.stack([bias[list(ids)].mean() for ids in parts])])
    return with_rows(grown, size + len(parts), rows)
