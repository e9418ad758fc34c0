"""Norms, products and sums of outer products, beside the gradients themselves."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deltasam.per_example import outer_products as outer
from deltasam.per_example.outer_products import GramCache, OuterProduct
from deltasam.per_example.parameter_gradient import ParameterGradient, gradient_of

F64 = torch.float64


@dataclass
class Mixture:
    """Several uses of one weight, and its gradient per group written out."""

    terms: list[OuterProduct]
    gradient: Tensor
    bias: Tensor

    @property
    def groups(self) -> int:
        return len(self.gradient)


def written_out(term: OuterProduct, shape: tuple[int, int]) -> Tensor:
    """One row after the other [g, *shape]."""
    total = torch.zeros(len(term.b), *shape, dtype=F64)
    for g in range(len(term.b)):
        for x, b in zip(term.x[g], term.b[g], strict=True):
            if not x.is_floating_point():
                x = torch.nn.functional.one_hot(x, shape[0]).to(F64)
            total[g] += torch.outer(x, b) if term.axis == 0 else torch.outer(b, x)
    return total


@st.composite
def mixtures(draw: st.DrawFn, *, ones: bool = False, same_axis: bool = False) -> Mixture:
    g, a, b = (draw(st.integers(1, 4)) for _ in range(3))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    axis_of_all = draw(st.sampled_from([0, 1]))
    terms = []
    for _ in range(draw(st.integers(1, 3))):
        rows = draw(st.integers(1, 4))
        kind = draw(st.sampled_from(["numbers"] if ones else ["numbers", "ids"]))
        axis = 0 if kind == "ids" and not same_axis else axis_of_all if same_axis else draw(st.sampled_from([0, 1]))
        if kind == "ids" and axis == 1:
            kind = "numbers"
        width_in, width_out = (a, b) if axis == 0 else (b, a)
        x = torch.randint(0, a, (g, rows)) if kind == "ids" else torch.randn(g, rows, width_in, dtype=F64)
        terms.append(OuterProduct(x, torch.randn(g, rows, width_out, dtype=F64), axis, ones=ones))
    gradient = torch.stack([written_out(t, (a, b)) for t in terms]).sum(0)
    bias = (
        torch.stack([t.b.sum(1) for t in terms]).sum(0) if len({t.b.shape[2] for t in terms}) == 1 else torch.empty(0)
    )
    return Mixture(terms, gradient, bias)


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


few = settings(max_examples=80, deadline=None)


@few
@given(mixtures())
def test_norm(mixture: Mixture) -> None:
    close(outer.square_norm(mixture.terms, GramCache(wide=True)), mixture.gradient.square().sum((1, 2)))


@few
@given(mixtures(ones=True, same_axis=True))
def test_norm_with_the_bias(mixture: Mixture) -> None:
    wanted = mixture.gradient.square().sum((1, 2)) + mixture.bias.square().sum(1)
    close(outer.square_norm(mixture.terms, GramCache(wide=True)), wanted)


@few
@given(mixtures())
def test_matrix_and_total(mixture: Mixture) -> None:
    gradient = ParameterGradient(tuple(mixture.terms))
    shape = mixture.gradient.shape[1:]
    close(gradient.matrix(shape), mixture.gradient)
    close(gradient.total(shape), mixture.gradient.sum(0))


@few
@given(mixtures(ones=True, same_axis=True))
def test_total_of_the_bias(mixture: Mixture) -> None:
    gradient = ParameterGradient(tuple(mixture.terms))
    assert gradient.holds_bias
    close(gradient.bias_total(), mixture.bias.sum(0))


@few
@given(mixtures(), st.sampled_from([0, 1]), st.integers(1, 5))
def test_contract_with_numbers(mixture: Mixture, axis: int, rows: int) -> None:
    shape = mixture.gradient.shape
    x = torch.randn(shape[0], rows, shape[1] if axis == 0 else shape[2], dtype=F64)
    y = torch.randn(shape[0], rows, shape[2] if axis == 0 else shape[1], dtype=F64)
    out = y
    for term in mixture.terms:
        out = outer.contract(out, x, axis, term, GramCache(wide=False))
    close(out, y + x @ (mixture.gradient if axis == 0 else mixture.gradient.mT))


@few
@given(mixtures(), st.integers(1, 5))
def test_contract_with_ids(mixture: Mixture, rows: int) -> None:
    g, table, width = mixture.gradient.shape
    ids, y = torch.randint(0, table, (g, rows)), torch.randn(g, rows, width, dtype=F64)
    out = y
    for term in mixture.terms:
        out = outer.contract(out, ids, 0, term, GramCache(wide=False))
    close(out, y + torch.stack([mixture.gradient[i][ids[i]] for i in range(g)]))


@few
@given(mixtures(ones=True, same_axis=True), st.integers(1, 5))
def test_contract_with_the_bias(mixture: Mixture, rows: int) -> None:
    axis, shape = mixture.terms[0].axis, mixture.gradient.shape
    x = torch.randn(shape[0], rows, shape[1] if axis == 0 else shape[2], dtype=F64)
    out = torch.zeros(shape[0], rows, shape[2] if axis == 0 else shape[1], dtype=F64)
    for term in mixture.terms:
        out = outer.contract(out, x, axis, term, GramCache(wide=False))
    close(out, x @ (mixture.gradient if axis == 0 else mixture.gradient.mT) + mixture.bias[:, None])


@few
@given(mixtures())
def test_a_factor_scales_a_group(mixture: Mixture) -> None:
    factors = torch.rand(mixture.groups, dtype=F64) + 0.1
    factors[0] = 0
    wanted = factors[:, None, None] * mixture.gradient
    shape = mixture.gradient.shape[1:]
    for gradient in (ParameterGradient(tuple(mixture.terms)), ParameterGradient(dense=mixture.gradient.clone())):
        for times in (1, 2):
            gradient = gradient.times(factors if times == 1 else 1 / (factors + 1))
            expected = wanted if times == 1 else wanted / (factors + 1)[:, None, None]
            close(gradient.matrix(shape), expected)
            close(gradient.total(shape), expected.sum(0))
            close(gradient.square_norm(GramCache(wide=True)), expected.square().sum((1, 2)))


@few
@given(mixtures(ones=True, same_axis=True))
def test_a_factor_scales_the_bias(mixture: Mixture) -> None:
    factors = torch.rand(mixture.groups, dtype=F64)
    gradient = ParameterGradient(tuple(mixture.terms)).times(factors)
    close(gradient.bias_total(), factors @ mixture.bias)
    wanted = mixture.gradient.square().sum((1, 2)) + mixture.bias.square().sum(1)
    close(gradient.square_norm(GramCache(wide=True)), factors**2 * wanted)


@few
@given(mixtures(), st.sampled_from([0, 1]), st.integers(1, 5))
def test_a_factor_scales_what_is_contracted(mixture: Mixture, axis: int, rows: int) -> None:
    shape = mixture.gradient.shape
    factors = torch.rand(shape[0], dtype=F64)
    x = torch.randn(shape[0], rows, shape[1] if axis == 0 else shape[2], dtype=F64)
    y = torch.randn(shape[0], rows, shape[2] if axis == 0 else shape[1], dtype=F64)
    ids = torch.randint(0, shape[1], (shape[0], rows))
    scaled = factors[:, None, None] * mixture.gradient
    products, out = GramCache(wide=False), y
    looked_up = torch.zeros(shape[0], rows, shape[2], dtype=F64)
    for term in mixture.terms:
        plain = outer.contract(y, x, axis, term, products)  # a product without the factor is not taken for one with it
        out = outer.contract(out, x, axis, term.times(factors), products)
        looked_up = outer.contract(looked_up, ids, 0, term.times(factors), products)
        assert torch.equal(outer.contract(y, x, axis, term, products), plain)
    close(out, y + x @ (scaled if axis == 0 else scaled.mT))
    close(looked_up, torch.stack([scaled[i][ids[i]] for i in range(shape[0])]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_group_that_is_dropped_is_zero_whatever_it_was(bad: float, dtype: torch.dtype) -> None:
    dropped = torch.tensor([True, False])
    b = torch.ones(2, 3, 5, dtype=dtype)
    b[0] = bad
    shape = torch.Size((5, 4))
    term = OuterProduct(torch.ones(2, 3, 4, dtype=dtype), b, axis=1, ones=True)
    outers, dense = ParameterGradient((term,)), ParameterGradient(dense=term.matrix(shape))
    for gradient in (outers, dense):
        kept = gradient.without(dropped).times(torch.tensor([0.0, 2.0]))
        assert (kept.matrix(shape)[0] == 0).all()
        assert (kept.matrix(shape)[1] == 6).all()
        assert (kept.total(shape) == 6).all()
    assert (outers.without(dropped).bias_total() == 3).all()


@few
@given(mixtures(), st.data())
def test_rows_without_a_gradient_change_nothing(mixture: Mixture, data: st.DataObject) -> None:
    for term in mixture.terms:
        rows = term.b.shape[1] * 6
        b = torch.zeros(mixture.groups, rows, term.b.shape[2], dtype=F64)
        x = torch.randint(0, 2, (mixture.groups, rows)) % mixture.gradient.shape[1]
        if term.x.is_floating_point():
            x = torch.randn(mixture.groups, rows, term.x.shape[2], dtype=F64)
        for g in range(mixture.groups):
            for i in range(term.b.shape[1]):
                alive = data.draw(st.booleans())
                row = data.draw(st.integers(0, rows - 1))
                b[g, row] = term.b[g, i] * alive
                x[g, row] = term.x[g, i]
        b[..., 0] *= data.draw(st.booleans())  # one column alone says nothing
        whole = OuterProduct(x, b, term.axis)
        fewer = whole.without_zero_rows()
        shape = mixture.gradient.shape[1:]
        close(fewer.matrix(shape), whole.matrix(shape))
        assert fewer.b.shape[1] <= rows


def test_rows_without_a_gradient_are_left_out() -> None:
    b = torch.zeros(2, 100, 4)
    b[:, 0] = 1
    assert OuterProduct(torch.randn(2, 100, 3), b, axis=1).without_zero_rows().b.shape == (2, 1, 4)


@few
@given(mixtures())
def test_any_form_of_a_gradient_is_the_same(mixture: Mixture) -> None:
    parameter = nn.Parameter(torch.zeros(mixture.gradient.shape[1:], dtype=F64))
    extra = torch.randn_like(mixture.gradient)
    for outers, denses, wanted in (
        (mixture.terms, [], mixture.gradient),
        (mixture.terms, [extra], mixture.gradient + extra),
        ([], [extra, extra], 2 * extra),
    ):
        gradient = gradient_of(parameter, outers, denses, len(mixture.gradient))
        close(gradient.matrix(parameter.shape), wanted)
        close(gradient.square_norm(GramCache(wide=True)), wanted.square().sum((1, 2)))


def test_products_are_shared_and_never_stale() -> None:
    products = GramCache(wide=False, keep=2)
    p, q = torch.randn(1, 3, 2), torch.randn(1, 3, 2)
    first = products(p, q)
    if hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"):  # else nothing is shared: PyTorch < 2.8
        assert products(p, q) is first
        assert products(p.view(1, 3, 2), q) is not first  # another tensor may be at another place in the graph
    p.add_(1)
    torch.testing.assert_close(products(p, q), p @ q.mT)
    with torch.no_grad():
        assert products(p, q) is not products(q, p)
    p = 2 * torch.randn(1, 3, 2, requires_grad=True)
    assert products(p, q).requires_grad
    p.detach_()
    assert not products(p, q).requires_grad
    for _ in range(3):  # memory that is given back is given out again
        a = torch.randn(1, 3, 2)
        torch.testing.assert_close(products(a, q), a @ q.mT)
        del a


def test_products_know_of_the_constant() -> None:
    products = GramCache(wide=False)
    p, q = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    torch.testing.assert_close(products(p, q, ones=True) - products(p, q), torch.ones(2, 3, 5))


def test_norms_of_half_precision_are_wide() -> None:
    x, b = (torch.full((1, 8, 64), 100.0, dtype=torch.float16) for _ in range(2))
    found = outer.square_norm([OuterProduct(x, b, axis=1)], GramCache(wide=True))
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert OuterProduct(x, b, axis=1).matrix(torch.Size((64, 64))).dtype == torch.float32
