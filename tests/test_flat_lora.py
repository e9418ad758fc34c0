"""Flat-LoRA: noise in frozen weights, as large as the merged ones, of which nothing is left."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cases
import deltasam
from deltasam.core.restore import WeightStore

RHO = 0.3


def adapted(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if hasattr(m, "base_layer") and hasattr(m, "lora_A")]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """What the noise is, for each time that some is asked for."""
    found: list[list[Tensor]] = []

    def gaussian(self: WeightStore, params: Any, generator: Any) -> list[Tensor]:
        found.append([torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).to(p) for p in params])
        return [z.clone() for z in found[-1]]

    monkeypatch.setattr(WeightStore, "gaussian", gaussian)
    return found


def expected(case: cases.Case, noise: list[Tensor]) -> dict[str, Tensor]:
    """Plain training of a copy whose frozen weights have the noise, written from the equation."""
    model = copy.deepcopy(case.model)
    with torch.no_grad():
        for layer, z in zip(adapted(model), noise, strict=True):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            merged = layer.base_layer.weight + layer.scaling["default"] * b @ a
            size = merged.square().sum(1).sqrt() / merged.shape[1] ** 0.5
            layer.base_layer.weight.add_(RHO * size[:, None] * z)
    model.zero_grad()
    torch.manual_seed(3)
    case.run(model, None).mean().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_equals_its_equation(drawn: list[list[Tensor]]) -> None:
    case = cases.make("lora")
    before = {n: p.detach().clone() for n, p in case.model.named_parameters()}
    torch.manual_seed(3)
    step = deltasam.FlatLoRA(case.model, rho=RHO).backward(case.closure)
    found = {n: p.grad for n, p in case.model.named_parameters() if p.grad is not None}
    wanted = expected(case, drawn[0])
    assert found.keys() == wanted.keys()
    for name, g in wanted.items():
        torch.testing.assert_close(found[name], g, rtol=1e-10, atol=1e-13)
    for name, p in case.model.named_parameters():
        assert torch.equal(p, before[name])
    assert all(p.grad is None for n, p in case.model.named_parameters() if "base_layer" in n)
    assert float(step.metrics["radius_ratio"]) == pytest.approx(1)


def test_frozen_weights_come_back_bit_for_bit_in_half_precision() -> None:
    case = cases.make("lora", torch.bfloat16)
    before = {n: p.detach().clone() for n, p in case.model.named_parameters()}
    method = deltasam.FlatLoRA(case.model, rho=1.0)
    for _ in range(5):
        method.backward(case.closure)
    for name, p in case.model.named_parameters():
        assert torch.equal(p, before[name])


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_after_an_error_nothing_is_left_of_the_noise(where: str) -> None:
    case = cases.make("lora")
    before = {n: p.detach().clone() for n, p in case.model.named_parameters()}

    def closure() -> Tensor:
        losses = case.closure()
        if where == "forward":
            raise KeyboardInterrupt
        losses.register_hook(lambda _: (_ for _ in ()).throw(KeyboardInterrupt()))
        return losses

    with pytest.raises(KeyboardInterrupt):
        deltasam.FlatLoRA(case.model, rho=1.0).backward(closure)
    for name, p in case.model.named_parameters():
        assert torch.equal(p, before[name])


def test_rows_of_a_transposed_weight(drawn: list[list[Tensor]]) -> None:
    """GPT-2's layers hold their weights the other way around."""
    from peft import LoraConfig, get_peft_model

    case = cases.make("gpt2", dropout=False)
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    model = get_peft_model(case.model, config).double()
    before = copy.deepcopy(model)
    deltasam.FlatLoRA(model, rho=RHO).backward(lambda: case.run(model, None))
    with torch.no_grad():
        for layer, z in zip(adapted(before), drawn[0], strict=True):
            delta = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            merged = layer.base_layer.weight + delta.T
            size = merged.square().sum(0).sqrt() / merged.shape[0] ** 0.5
            layer.base_layer.weight.add_(RHO * size[None, :] * z)
    case.run(before, None).mean().backward()
    for p, q in zip(model.parameters(), before.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-13)


def test_quantized_weights_are_refused() -> None:
    case = cases.make("lora")
    adapted(case.model)[0].base_layer.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"flat_lora.*quantized, or not a matrix \(torch.uint8, \[8, 1\]\)"):
        deltasam.FlatLoRA(case.model, rho=RHO).backward(case.closure)


def test_a_merged_adapter_is_refused() -> None:
    case = cases.make("lora")
    case.model.merge_adapter()
    with pytest.raises(ValueError, match="merged already"):
        deltasam.FlatLoRA(case.model, rho=RHO).backward(case.closure)
