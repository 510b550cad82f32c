import pytest
import torch

from cmbert.model.rotary import rotary_tables, rotate, split_heads


def complex_reference(x, position, base):
    """RoPE as a multiplication by e^(i * angle), in fp64."""
    half = x.shape[-1] // 2
    angle = position.double()[:, None] * base ** (-torch.arange(half, dtype=torch.float64) / half)
    number = torch.complex(x[..., :half].double(), x[..., half:].double())
    turned = number * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)


def test_matches_complex_reference_at_every_position_of_the_paper():
    torch.manual_seed(0)
    position = torch.tensor([0, 1, 2, 63, 64, 1023, 8191])
    x = torch.randn(7, 3, 64)
    for base in (10_000.0, 80_000.0):
        ours = rotate(x, rotary_tables(position, 64, base))
        # An fp32 angle near 8191 is known to 2^-11 of a radian; its rounding is the only error.
        torch.testing.assert_close(ours.double(), complex_reference(x, position, base), atol=4e-3, rtol=0)
        torch.testing.assert_close(ours[:5].double(), complex_reference(x, position, base)[:5], atol=3e-5, rtol=0)


def test_scores_depend_on_distance_only():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 32)
    scores = []
    for start in (0, 5, 300):
        tables = rotary_tables(torch.tensor([start, start + 7]), 32, 10_000.0)
        pair = rotate(torch.cat((query, key)), tables)
        scores.append((pair[0] * pair[1]).sum())
    torch.testing.assert_close(torch.stack(scores), scores[0].expand(3), atol=1e-4, rtol=0)


def test_bfloat16_is_rotated_in_fp32_and_rounded_once():
    torch.manual_seed(0)
    x = torch.randn(50, 2, 3, 16).bfloat16()
    tables = rotary_tables(torch.arange(4000, 4050), 16, 10_000.0)
    assert tables[0].dtype == torch.float32
    assert torch.equal(rotate(x, tables), rotate(x.float(), tables).bfloat16())


def test_is_deterministic():
    x = torch.randn(9, 2, 8)
    first, second = (rotate(x, rotary_tables(torch.arange(9), 8, 10_000.0)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_split_heads_rotates_queries_and_keys_alone_and_so_their_gradients(dtype):
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(9, 3 * 2 * 8, generator=generator).to(dtype)
    weight = torch.randn(9, 3, 2, 8, generator=generator).to(dtype)
    tables = rotary_tables(torch.arange(9), 8, 10_000.0)

    def by_hand(qkv):
        query, key, value = qkv.view(9, 3, 2, 8).unbind(1)
        return torch.stack((rotate(query, tables), rotate(key, tables), value), dim=1)

    results = []
    for function in (lambda qkv: split_heads(qkv, tables, num_heads=2), by_hand):
        leaf = projected.clone().requires_grad_()
        out = function(leaf * 1)  # what split_heads is given is overwritten
        (gradient,) = torch.autograd.grad((out * weight).sum(), leaf)
        results.append((out, gradient))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
