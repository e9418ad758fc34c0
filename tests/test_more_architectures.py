"""Architectures beyond those of ``test_architectures``: nothing in the engine knows them, and they are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltasam
from deltasam import reference

N, T, CLASSES = 4, 8, 3
ENCODER: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "num_labels": CLASSES, "max_position_embeddings": 32,
}  # fmt: skip
DECODER: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 24, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False,
}  # fmt: skip
EXPERTS: dict[str, Any] = {**DECODER, "num_experts_per_tok": 2, "experts_implementation": "batched_mm"}
BART: dict[str, Any] = {
    "vocab_size": 50, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
T5: dict[str, Any] = {
    "vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "pad_token_id": 0,
    "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "num_labels": CLASSES, "image_size": 32, "patch_size": 8,
}  # fmt: skip
FOUR: dict[str, Any] = {"hidden_sizes": [8] * 4, "depths": [1] * 4}
SPEECH: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "num_labels": CLASSES,
    "conv_dim": (8, 8), "conv_stride": (4, 2), "conv_kernel": (4, 2), "num_feat_extract_layers": 2, "layerdrop": 0.0,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8, "mask_time_prob": 0.5,
    "mask_time_length": 2, "mask_feature_prob": 0.0,
}  # fmt: skip
CODEGEN: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "rotary_dim": 4}
MODERN: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ConvBert": {**ENCODER, "embedding_size": 16},
    "MobileBert": {**ENCODER, "embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16},
    "SqueezeBert": {**ENCODER, "embedding_size": 16, "q_groups": 2, "k_groups": 2, "v_groups": 2},
    "FNet": ENCODER,
    "BigBird": {**ENCODER, "attention_type": "original_full"},
    "Deberta": {**ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "RemBert": {**ENCODER, "input_embedding_size": 16, "output_embedding_size": 16},
    "RoFormer": {**ENCODER, "embedding_size": 16},
    "ModernBert": {**ENCODER, **MODERN},
    "Flaubert": {"vocab_size": 50, "num_labels": CLASSES, "emb_dim": 16, "n_layers": 2, "n_heads": 2},
    "Gemma2": {**DECODER, "head_dim": 8},
    "Phi3": DECODER,
    "Olmo2": DECODER,
    "StableLm": DECODER,
    "Cohere": DECODER,
    "GPTJ": {**DECODER, **CODEGEN},
    "Mamba": {**DECODER, "state_size": 4, "time_step_rank": 4},
    "Mixtral": {**EXPERTS, "num_local_experts": 4},
    "Qwen3Moe": {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 12, "head_dim": 8},
    "GptOss": {**EXPERTS, "num_local_experts": 4, "head_dim": 8, "layer_types": ["full_attention"] * 2},
    "Mpt": {**DECODER, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 32},
    "Pegasus": BART,
    "M2M100": BART,
    "UMT5": {**T5, "feed_forward_proj": "gated-gelu"},
    "LongT5": T5,
    "Dinov2": VISION,
    "ConvNext": {**VISION, **FOUR, "patch_size": 4},
    "CLIP": {"vision_config": VISION, "num_labels": CLASSES},
    "Wav2Vec2": SPEECH,
    "Hubert": SPEECH,
    "WavLM": SPEECH,
    "Whisper": {**BART, "num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 32},
    "Segformer": {**VISION, **FOUR, "num_attention_heads": [1, 2, 2, 2]},
}
# Those that compute a part in float32.
LESS_PRECISE = {"Mixtral", "Qwen3Moe", "GptOss"}


def build(name: str) -> nn.Module:
    import transformers

    options = ARCHITECTURES[name]
    head = next(h for h in heads_of(options) if hasattr(transformers, name + h))
    model = getattr(transformers, name + head)(getattr(transformers, name + "Config")(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().train()


def heads_of(options: dict[str, Any]) -> tuple[str, ...]:
    """The classes that may be meant, best first."""
    if "image_size" in options or "vision_config" in options:
        return ("ForImageClassification",)
    if "decoder_start_token_id" in options:
        return ("ForConditionalGeneration",)
    if "num_key_value_heads" in options:
        return ("ForCausalLM",)
    return ("ForSequenceClassification", "ForCausalLM")


def batch_for(model: nn.Module) -> dict[str, Tensor]:
    shape = {"pixel_values": (3, 32, 32), "input_values": (160,), "input_features": (8, 16)}.get(model.main_input_name)
    batch = {} if shape is None else {model.main_input_name: torch.randn(N, *shape, dtype=torch.float64)}
    if shape is None:
        batch["input_ids"] = torch.randint(3, 50, (N, T))
        batch["attention_mask"] = torch.tensor([[1] * length + [0] * (T - length) for length in (8, 6, 8, 5)])
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = torch.randint(3, 50, (N, 5))
    return batch


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_is_exact(name: str) -> None:
    model = build(name)
    batch = batch_for(model)
    labels = torch.randint(0, CLASSES, (N,))

    def run(call: Any) -> Tensor:
        np.random.seed(0)  # of the places that SpecAugment masks
        logits = call(**batch).logits
        if logits.ndim == 2:
            return F.cross_entropy(logits, labels, reduction="none")
        targets = labels[:, None].expand(logits.shape[:2])
        return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)

    torch.manual_seed(3)
    losses, weights = reference.losses_function(model, run)
    expected = reference.per_instance_sam(losses, weights, rho=0.1, m=1)
    calls: list[int] = []
    method = deltasam.PerInstanceSAM(model, rho=0.1)
    for _ in range(2):  # the first is checked
        model.zero_grad()
        calls.clear()
        torch.manual_seed(3)
        method.backward(lambda: (calls.append(0), run(model))[1])
    found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    error = {n: (torch.zeros_like(e) if found[n] is None else found[n]) - e for n, e in expected.items()}
    assert len(calls) == 2
    assert float(reference.norm(error) / reference.norm(expected)) < (1e-6 if name in LESS_PRECISE else 1e-10)


@pytest.mark.parametrize("how", ["eager", "grouped_mm"])
def test_experts_say_how_they_are_exact(how: str) -> None:
    model = build("Mixtral").float()
    model.set_experts_implementation(how)
    ids = torch.randint(3, 50, (N, T))
    with pytest.raises(deltasam.NotCoveredError, match=r"experts\..*_implementation\('batched_mm'\) is exact"):
        deltasam.PerInstanceSAM(model).backward(lambda: model(ids).logits.square().mean((1, 2)))
