"""With LayerNorm our model is ModernBERT: same keys, logits, loss and gradients as transformers on the same weights."""

import itertools

import pytest
import torch
from torch.testing import assert_close
from transformers import ModernBertConfig, ModernBertForMaskedLM

from cmbert.config.schema import ModelConfig
from cmbert.model.heads import MaskedLanguageModel
from cmbert.model.init import initialise

CONFIG = ModelConfig(
    num_layers=4, hidden_size=64, num_heads=4, intermediate_size=96, vocab_size=256, norm="layernorm", init_std=0.1
)
LENGTHS = {"short": [1, 7, 30], "around the window": [63, 64, 65, 66, 128, 129, 130], "long": [700, 5, 200]}


@pytest.fixture(scope="module")
def ours():
    model = MaskedLanguageModel(CONFIG)
    initialise(model, seed=3)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def theirs(request, ours):
    bases = {"full_attention": CONFIG.rope_base_global, "sliding_attention": CONFIG.rope_base_local}
    config = ModernBertConfig(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.hidden_size,
        intermediate_size=CONFIG.intermediate_size,
        num_hidden_layers=CONFIG.num_layers,
        num_attention_heads=CONFIG.num_heads,
        norm_eps=CONFIG.norm_eps,
        local_attention=CONFIG.local_window,
        max_position_embeddings=CONFIG.max_length,
        rope_parameters={kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()},
        pad_token_id=0,
        bos_token_id=2,
        cls_token_id=2,
        eos_token_id=3,
        sep_token_id=3,
        attn_implementation=request.param,
    )
    model = ModernBertForMaskedLM(config)
    assert list(model.state_dict()) == list(ours.state_dict())
    model.load_state_dict(ours.state_dict())
    return model


def padded_and_packed(lengths):
    torch.manual_seed(1)
    segments = [torch.randint(5, CONFIG.vocab_size, (length,)) for length in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(segments, batch_first=True)
    is_real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return padded, is_real, torch.cat(segments), cu_seqlens


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_packed_logits_equal_padded_logits(ours, theirs, lengths):
    padded, is_real, packed, cu_seqlens = padded_and_packed(lengths)
    with torch.inference_mode():
        expected = theirs(input_ids=padded, attention_mask=is_real.long()).logits[is_real]
        got = ours.logits(packed, cu_seqlens)
    assert expected.std() > 0.3
    assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_loss_and_gradients_are_equal(ours, theirs):
    padded, is_real, packed, cu_seqlens = padded_and_packed(LENGTHS["around the window"])
    positions = torch.arange(0, len(packed), 5)
    targets = packed[positions].roll(1)
    labels = torch.full((len(packed),), -100)
    labels[positions] = targets
    padded_labels = torch.full(padded.shape, -100)
    padded_labels[is_real] = labels

    ours.zero_grad()
    theirs.zero_grad()
    loss_sum, _, _ = ours(packed, cu_seqlens, positions, targets)
    (loss_sum / len(positions)).backward()
    expected = theirs(input_ids=padded, attention_mask=is_real.long(), labels=padded_labels).loss
    expected.backward()
    assert_close(loss_sum / len(positions), expected, atol=1e-5, rtol=1e-5)
    our_gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert_close(our_gradients, their_gradients, atol=1e-5, rtol=1e-3)
