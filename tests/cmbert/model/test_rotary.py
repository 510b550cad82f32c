import torch

from cmbert.model.rotary import rotary_tables, rotate


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
