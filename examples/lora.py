"""LoRA adapters from PEFT on a small BERT.

What one sees: only adapters get a ``.grad``, the base weights stay as they are bit by bit, and ``per_instance_sam``'s
two passes fill what one plain ``autograd.grad`` for each example fills, dropout included.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import deltasam
from deltasam import reference

torch.manual_seed(0)
CONFIG = BertConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=3
)
IDS, LABELS = torch.randint(5, 50, (6, 10)), torch.randint(3, (6,))
MASK = torch.arange(10) < torch.tensor([10, 7, 9, 4, 10, 5])[:, None]


def losses(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(input_ids=IDS, attention_mask=MASK).logits, LABELS, reduction="none")


def make() -> nn.Module:
    torch.manual_seed(1)
    lora = LoraConfig(r=4, target_modules=["query", "value"], lora_dropout=0.1, init_lora_weights=False)
    return get_peft_model(BertForSequenceClassification(CONFIG), lora).double().train()


if __name__ == "__main__":
    model = make()
    base = {name: p.detach().clone() for name, p in model.named_parameters() if "lora" not in name}
    method = deltasam.PerInstanceSAM(model, rho=0.05)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.01)
    for _ in range(3):
        slow, w = reference.losses_function(model, losses)  # every example by itself, from the same dropout masks
        expected = reference.per_instance_sam(slow, w, rho=0.05, m=1)
        method.backward(lambda: losses(model))
        with_gradient = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert with_gradient.keys() == expected.keys() == {n for n, _ in model.named_parameters() if "lora" in n}
        assert all((g - expected[n]).norm() <= 1e-9 * reference.norm(expected) for n, g in with_gradient.items())
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)
    print(f"{len(with_gradient)} adapter matrices as from one example at a time, {len(base)} weights untouched")
