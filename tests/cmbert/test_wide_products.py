"""Products of bf16 matrices that are made in fp32, beside torch's own and sums in fp64."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cmbert import wide_products
from cmbert.accel import compiled

BF16, ULP = torch.bfloat16, 2.0**-8  # the largest error of rounding to bf16, of the value


@pytest.fixture
def widened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Products as on a CPU that does not multiply bf16; the dtypes in which they are made."""
    made: list[str] = []
    widen = wide_products._widened

    def watched(product):
        def note(keys, *matrices, **factors):
            made.append(str(matrices[-1].dtype))
            return product(keys, *matrices, **factors)

        return widen(note)

    monkeypatch.setattr(wide_products, "_widened", watched)
    monkeypatch.setattr(wide_products, "multiplies_bf16", lambda: False)
    library = wide_products.widen_products.__wrapped__()
    assert library is not None
    yield made
    library._destroy()


def random(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


PRODUCTS = {
    "mm": lambda a, b, c: a @ b,
    "mm of transposed": lambda a, b, c: (b.mT @ a.mT).mT,
    "addmm": lambda a, b, c: torch.addmm(c, a, b, beta=0.5, alpha=2.0),
    "linear": lambda a, b, c: torch.nn.functional.linear(a, b.mT.contiguous(), c[0]),
    "mm, out": lambda a, b, c: torch.mm(a, b, out=torch.empty_like(c)),
    "addmm, in place": lambda a, b, c: c.clone().addmm_(a, b),
    "bmm": lambda a, b, c: torch.bmm(a.expand(3, -1, -1), b.expand(3, -1, -1)),
    "baddbmm": lambda a, b, c: torch.baddbmm(c[None], a[None], b[None], beta=2.0, alpha=0.5),
    "einsum": lambda a, b, c: torch.einsum("hij,hjk->hik", a[None], b[None]),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_the_exact_one_rounded_once(name: str, widened: list[str]) -> None:
    matrices = random(6, 40), random(40, 9), random(6, 9)
    found = PRODUCTS[name](*matrices)
    assert found.dtype == BF16
    exact = PRODUCTS[name](*(matrix.double() for matrix in matrices))
    magnitude = PRODUCTS[name](*(matrix.double().abs() for matrix in matrices))
    assert ((found.double() - exact).abs() <= ULP * exact.abs() + 1e-6 * magnitude).all()


def test_gradients_pass_through_in_bf16(widened: list[str]) -> None:
    a, b = random(6, 40).requires_grad_(), random(40, 9).requires_grad_()
    (a @ b).backward(random(6, 9))
    assert widened.count("torch.float32") == 3
    given = random(6, 9).double()
    for found, exact in ((a.grad, given @ b.double().mT), (b.grad, a.double().mT @ given)):
        assert found.dtype == BF16
        assert torch.equal(found, exact.to(BF16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_other_products_keep_their_bits(dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    matrices = random(6, 40, dtype=dtype), random(40, 9, dtype=dtype), random(6, 9, dtype=dtype)
    before = [product(*matrices) for product in PRODUCTS.values()]
    request.getfixturevalue("widened")
    for product, expected in zip(PRODUCTS.values(), before, strict=True):
        assert torch.equal(product(*matrices), expected)


def test_dtypes_that_do_not_agree_are_refused_as_everywhere(widened: list[str]) -> None:
    for product in (lambda a, b: a @ b, lambda a, b: torch.mm(a, b, out=torch.empty(6, 9, dtype=BF16))):
        with pytest.raises(RuntimeError, match=r"dtype|scalar type"):
            product(random(6, 40), random(40, 9, dtype=torch.float32))


def test_a_compiled_product_is_widened(widened: list[str]) -> None:
    a, b = random(6, 40), random(40, 9)
    found = compiled(lambda a, b: (a @ b).relu(), dynamic=False)(a, b)
    assert torch.equal(found, (a.double() @ b.double()).to(BF16).relu())


def test_a_cpu_that_multiplies_bf16_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide_products, "multiplies_bf16", lambda: True)
    assert wide_products.widen_products.__wrapped__() is None


def test_this_machine_is_asked() -> None:
    assert (wide_products.widen_products() is None) == wide_products.multiplies_bf16()
