import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

LENGTHS = [5, 130, 64, 1, 90]


def targets_for(input_ids, num_masked, vocab_size=128):
    generator = torch.Generator().manual_seed(7)
    positions = torch.randperm(len(input_ids), generator=generator)[:num_masked].sort().values
    return positions, torch.randint(5, vocab_size, (num_masked,), generator=generator)


def test_loss_equals_cross_entropy_of_all_logits_at_masked_positions(make_model, pack):
    model = make_model()
    input_ids, cu_seqlens = pack(LENGTHS)
    positions, targets = targets_for(input_ids, 40)
    all_logits = model.logits(input_ids, cu_seqlens)
    targets[0] = all_logits[positions[0]].argmax()
    loss_sum, num_correct, losses = model(input_ids, cu_seqlens, positions, targets)
    labels = torch.full((len(input_ids),), -100)
    labels[positions] = targets
    assert all_logits.shape == (sum(LENGTHS), 128)
    assert_close(loss_sum, F.cross_entropy(all_logits, labels, reduction="sum"))
    assert_close(losses, F.cross_entropy(all_logits[positions], targets, reduction="none").detach())
    assert num_correct.dtype == torch.int64
    assert num_correct == (all_logits.argmax(-1) == labels).sum() >= 1


@pytest.mark.parametrize("lengths", [LENGTHS, []], ids=["tokens", "no tokens"])
def test_no_masked_positions_give_zero_loss_and_zero_gradients(make_model, pack, lengths):
    model = make_model()
    input_ids, cu_seqlens = pack(lengths)
    nothing = torch.empty(0, dtype=torch.int64)
    loss_sum, num_correct, _ = model(input_ids, cu_seqlens, nothing, nothing)
    loss_sum.backward()
    assert loss_sum == 0
    assert num_correct == 0
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("changed", range(len(LENGTHS)))
def test_changing_one_segment_leaves_the_others_bitwise_equal(make_model, pack, dtype, changed):
    model = make_model().to(dtype)
    input_ids, cu_seqlens = pack(LENGTHS)
    other_ids = input_ids.clone()
    start, end = cu_seqlens[changed], cu_seqlens[changed + 1]
    other_ids[start:end] = (other_ids[start:end] - 5 + 60) % 123 + 5
    before, after = (model.logits(ids, cu_seqlens).split(LENGTHS) for ids in (input_ids, other_ids))
    is_equal = [torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert is_equal == [index != changed for index in range(len(LENGTHS))]


def test_bfloat16_module_has_fp32_loss_near_the_fp32_model(make_model, pack):
    model = make_model()
    input_ids, cu_seqlens = pack(LENGTHS)
    positions, targets = targets_for(input_ids, 60)
    exact, *_ = model(input_ids, cu_seqlens, positions, targets)
    rounded, *_ = model.bfloat16()(input_ids, cu_seqlens, positions, targets)
    rounded.backward()
    assert rounded.dtype == torch.float32
    # Each of the 4 layers rounds its activations to 8 bits (2^-9); the errors average out over 60 targets.
    assert_close(rounded, exact, rtol=0.02, atol=0)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_decoder_shares_the_embedding_after_a_cast(make_model):
    model = make_model().bfloat16()
    assert model.decoder.weight is model.model.embeddings.tok_embeddings.weight
    assert not list(model.buffers())


def test_is_deterministic(make_model, pack):
    input_ids, cu_seqlens = pack(LENGTHS)
    positions, targets = targets_for(input_ids, 40)
    results = []
    for _ in range(2):
        model = make_model()
        loss_sum, *_ = model(input_ids, cu_seqlens, positions, targets)
        loss_sum.backward()
        results.append([loss_sum, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_learns_one_batch_by_heart(make_model, pack):
    model = make_model(init_std=0.02)
    input_ids, cu_seqlens = pack([20, 70])
    positions, targets = targets_for(input_ids, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss_sum, num_correct, _ = model(input_ids, cu_seqlens, positions, targets)
        loss_sum.backward()
        optimizer.step()
    assert num_correct == 16
