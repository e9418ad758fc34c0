"""All model classes of transformers, tiny, against the oracle.

    python benchmarks/adversary/sweep.py --jobs 2                 # one class of each model type
    python benchmarks/adversary/sweep.py --all --jobs 2           # every class of every auto mapping (hours)
    python benchmarks/adversary/sweep.py --only bert,llama -v     # some model types, with whole messages
    python benchmarks/adversary/sweep.py --dropout                # in training mode, masks replayed

Every class that can be built from its configuration, shrunk to a few small layers, without a network: in float64,
on three examples, exact per-instance SAM and the norms of the examples' gradients beside a loop over deep copies.
The loss of an example is a fixed function of its rows of the first output, so that no labels are needed. What
cannot be built or run by such a simple recipe is listed with its reason.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import inspect
import logging
import multiprocessing
import os
import signal
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

from adversary import record
from adversary.judge import SPECS, Case, Outcome, Subject, Truth, of_exception, tolerance

N, TOKENS, IMAGE, SAMPLES, FRAMES = 3, 6, 32, 2000, 24
WIDTH, HEADS, VOCABULARY, LARGEST = 16, 2, 99, 3_000_000
SWEPT = (SPECS[0], "per_example_grad_norms")
BASE = "MODEL_MAPPING_NAMES"

# Names of numbers in configurations, by what they mean; what is not here keeps its default if that is small.
SIZES: list[tuple[int, tuple[str, ...]]] = [
    (
        WIDTH,
        (
            "hidden_size",
            "d_model",
            "dim",
            "n_embd",
            "embed_dim",
            "emb_dim",
            "embedding_size",
            "d_embed",
            "hidden_dim",
            "projection_dim",
            "encoder_hidden_size",
            "decoder_hidden_size",
            "conv_dim",
            "conv_stem_channel",
            "text_embed_dim",
            "word_embed_proj_dim",
            "width",
            "embed_size",
            "mask_feature_size",
            "feature_size",
            "fpn_hidden_size",
            "decoder_hidden_dim",
            "encoder_hidden_dim",
            "classifier_proj_size",
            "codevector_dim",
            "proj_codevector_dim",
            "xvector_output_dim",
            "num_labels_dim",
            "d_kv_total",
            "q_lora_rank",
            "kv_lora_rank",
            "mamba_d_inner",
            "rnn_hidden_size",
            "lru_width",
            "attention_hidden_size",
            "conv_kernel_size_total",
            "output_dim",
            "out_hidden_size",
            "vision_hidden_size",
            "ffn_embed",
        ),
    ),
    (
        2 * WIDTH,
        (
            "intermediate_size",
            "ffn_dim",
            "d_ff",
            "n_inner",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "ffn_hidden_size",
            "mlp_dim",
            "intermediate_dim",
            "encoder_intermediate_size",
            "decoder_intermediate_size",
            "dim_feedforward",
            "expert_ffn_size",
            "shared_intermediate_size",
            "ffn_hidden_dim",
            "d_inner",
            "mlp_hidden_size",
        ),
    ),
    (
        2,
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "encoder_layers",
            "decoder_layers",
            "num_encoder_layers",
            "num_decoder_layers",
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "encoder_attention_heads",
            "decoder_attention_heads",
            "num_key_value_heads",
            "num_kv_heads",
            "n_kv_heads",
            "encoder_num_hidden_layers",
            "decoder_num_hidden_layers",
            "depth",
            "num_experts_per_tok",
            "num_local_experts_per_tok",
            "num_blocks",
            "num_block",
            "num_layer",
            "e_layers",
            "num_attention_layers",
            "predictor_num_hidden_layers",
            "predictor_num_attention_heads",
            "mamba_num_heads",
            "num_conv_pos_embedding_groups",
            "n_groups",
            "mamba_n_groups",
            "n_group",
            "topk_group",
            "encoder_num_attention_heads",
            "decoder_num_attention_heads",
            "num_codebooks",
            "attention_heads",
            "ssm_num_heads",
            "mamba_n_heads",
            "linear_num_key_heads",
            "linear_num_value_heads",
            "num_memory_blocks",
            "layers",
            "moe_topk",
            "moe_k",
            "fusion_num_hidden_layers",
        ),
    ),
    (
        4,
        (
            "num_experts",
            "num_local_experts",
            "n_routed_experts",
            "moe_num_experts",
            "num_codevectors_per_group",
            "window_size_small",
        ),
    ),
    (
        8,
        (
            "head_dim",
            "d_kv",
            "attention_head_size",
            "qk_nope_head_dim",
            "v_head_dim",
            "qk_rope_head_dim",
            "kv_channels",
            "mamba_head_dim",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "patch_size",
            "qk_head_dim",
            "global_head_dim",
            "rotary_dim",
        ),
    ),
    (
        64,
        (
            "max_position_embeddings",
            "n_positions",
            "n_ctx",
            "max_source_positions",
            "max_target_positions",
            "max_seq_len",
            "context_length_small",
            "max_sequence_length",
            "sliding_window",
            "attention_window_size",
            "max_2d_position_embeddings_small",
        ),
    ),
    (IMAGE, ("image_size", "img_size", "input_size")),
    (VOCABULARY, ("vocab_size", "text_vocab_size", "decoder_vocab_size", "encoder_vocab_size")),
]
NUMBERS = {name: size for size, names in SIZES for name in names}


def shrunk(config: Any, *, dropout: bool) -> Any:
    """The configuration with small sizes, in place; parts of it likewise."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            shrunk(value, dropout=dropout)
        elif isinstance(value, bool) or name.startswith("_"):
            continue
        elif name in NUMBERS and isinstance(value, int):
            _set(config, name, min(value, NUMBERS[name]))
        elif (
            name in NUMBERS
            and isinstance(value, (list, tuple))
            and name in ("image_size", "patch_size", "img_size", "input_size")
        ):
            _set(config, name, type(value)(min(v, NUMBERS[name]) for v in value))
        elif isinstance(value, (int, float)) and "drop" in name and not name.startswith("layerdrop"):
            _set(config, name, type(value)(0.1 if dropout and value else 0))
        elif isinstance(value, int) and name.endswith("_token_id"):
            _set(config, name, min(value, VOCABULARY - 1 - len(name) % 7))
        elif (
            isinstance(value, (list, tuple))
            and value
            and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        ):
            _set(config, name, type(value)(_list(name, list(value))))
        elif isinstance(value, (list, tuple)) and name in (
            "layer_types",
            "layers_block_type",
            "mlp_layer_types",
            "block_types",
            "mixer_types",
        ):
            kinds = list(dict.fromkeys(value))
            layers = next(
                (
                    getattr(config, n)
                    for n in ("num_hidden_layers", "n_layer", "num_layers")
                    if isinstance(getattr(config, n, None), int)
                ),
                2,
            )
            _set(config, name, type(value)((kinds * layers)[:layers]))
    if getattr(config, "pad_token_id", 0) is None and hasattr(config, "vocab_size"):
        config.pad_token_id = 0
    for name in (
        "layerdrop",
        "encoder_layerdrop",
        "decoder_layerdrop",
        "drop_path_rate",
        "mask_time_prob",
        "mask_feature_prob",
    ):
        if hasattr(config, name):
            _set(config, name, 0.0)
    return config


def _list(name: str, value: list[int]) -> list[int]:
    if name in ("depths", "num_blocks", "layers", "layer_depths", "encoder_depths"):
        return [1] * len(value)
    if name in (
        "hidden_sizes",
        "embed_dims",
        "dims",
        "encoder_hidden_sizes",
        "embed_dim",
        "neck_hidden_sizes",
        "conv_dim",
    ):
        first = max(value[0], 1)
        return [max(8, 8 * max(1, round(v / first))) for v in value] if max(value) / first <= 16 else [8] * len(value)
    if name in ("num_heads", "num_attention_heads", "encoder_num_heads"):
        return [min(v, 2) for v in value]
    if name in ("tdnn_dim", "channels", "num_filters"):
        return [min(v, WIDTH) for v in value]
    return value


def _set(config: Any, name: str, value: Any) -> None:
    with contextlib.suppress(Exception):  # some are properties that only read
        setattr(config, name, value)


def classes(every: bool) -> Iterator[tuple[str, str, str]]:
    """Model type, mapping and class name: the base class of each type first, then the others."""
    from transformers.models.auto import modeling_auto

    mappings = [name for name in vars(modeling_auto) if name.startswith("MODEL") and name.endswith("MAPPING_NAMES")]
    seen: set[str] = set()
    for mapping in sorted(mappings, key=lambda name: name != BASE):
        for model_type, names in vars(modeling_auto)[mapping].items():
            for name in (names,) if isinstance(names, str) else names:
                if name not in seen and (every or mapping == BASE):
                    seen.add(name)
                    yield model_type, mapping, name


def build(model_type: str, name: str, *, dropout: bool) -> nn.Module:
    """A tiny model of a class, in float64."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    cls = getattr(transformers, name)
    config = (cls.config_class or CONFIG_MAPPING[model_type])()
    shrunk(config, dropout=dropout)
    torch.manual_seed(0)
    with torch.device("meta"):
        size = sum(p.numel() for p in cls(copy.deepcopy(config)).parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} million parameters after shrinking")
    config._experts_implementation = "batched_mm"  # the default of mixtures of experts has no float64
    model = cls(config).double().train(dropout)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():  # gates, biases and norms that begin at 0 or 1 would hide mistakes
            p.add_(0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model


def candidates(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inputs to try in turn: all that fit; without images, which want tokens that stand for them; images alone."""
    given = inputs(model)
    yield given
    if "pixel_values" in given and len(given) > 1:
        yield {name: value for name, value in given.items() if name != "pixel_values"}
    if "pixel_values" in given:
        yield {"pixel_values": given["pixel_values"]}
        frames = getattr(model.config, "num_frames", None) or 2
        yield {"pixel_values": given["pixel_values"].unsqueeze(1).repeat(1, frames, 1, 1, 1)}


def inputs(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Plausible inputs of three examples, by the names of ``forward``'s arguments."""
    g = torch.Generator().manual_seed(seed)
    config = model.config
    text = getattr(config, "text_config", None) or config
    vision = getattr(config, "vision_config", None) or config
    vocabulary = getattr(text, "vocab_size", None) or VOCABULARY
    ids = torch.randint(3, max(4, min(vocabulary, VOCABULARY) - 8), (N, TOKENS), generator=g)
    side = getattr(vision, "image_size", None) or IMAGE
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    channels = getattr(vision, "num_channels", None) or getattr(vision, "in_channels", None) or 3
    mels = next(
        (
            m
            for n in ("num_mel_bins", "feature_size", "input_dim", "n_mels", "input_feat_per_channel")
            if (m := getattr(config, n, None))
        ),
        16,
    )
    frames = next((2 * m for n in ("max_source_positions",) if (m := getattr(config, n, None))), FRAMES)
    eos = getattr(config, "eos_token_id", None)
    if isinstance(eos, int):
        ids[:, -1] = eos
    mask = torch.ones(N, TOKENS, dtype=torch.long)
    mask[1, 1:3] = 0  # not at the end, where some read the class
    pad = getattr(text, "pad_token_id", None)
    ids[1, 1:3] = pad if isinstance(pad, int) and 0 <= pad < vocabulary else 0
    ids[::2, 2] = ids[1, 1]  # and not masked: tables give its row no gradient
    shapes = {
        "input_ids": lambda: ids,
        "attention_mask": lambda: mask,
        "decoder_input_ids": lambda: ids.flip(1),
        "pixel_values": lambda: torch.randn(N, channels, height, width, generator=g),
        "input_values": lambda: torch.randn(N, SAMPLES, generator=g),
        "input_features": lambda: torch.randn(N, mels, frames, generator=g),
        "bbox": lambda: torch.tensor([1, 2, 5, 8]).expand(N, TOKENS, 4).clone(),
        "past_values": lambda: torch.randn(
            N, getattr(config, "context_length", TOKENS), getattr(config, "num_input_channels", 1), generator=g
        ),
        "inputs": lambda: ids,
        "pixel_values_videos": lambda: torch.randn(N, 4, channels, height, width, generator=g),
    }
    accepted = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    names = {main} | ({"input_ids", "pixel_values", "bbox", "decoder_input_ids"} & accepted.keys())
    if main not in ("input_ids", "pixel_values"):
        names -= {"input_ids"} if "decoder_input_ids" in accepted else set()
    if getattr(config, "is_encoder_decoder", False) is False and main == "input_ids":
        names -= {"decoder_input_ids"}
    if "input_ids" in names and "attention_mask" in accepted:
        names |= {"attention_mask"}
    given = {name: shapes[name]() for name in sorted(names) if name in shapes}
    if type(model).__name__.endswith("MultipleChoice"):
        return {name: torch.stack([value, value.roll(1, 0)], 1) for name, value in given.items()}
    return given


def losses(model: nn.Module, given: Mapping[str, Tensor]) -> Tensor:
    """A fixed smooth function of each example's rows of the model's first output [n]."""
    output = model(**given)
    n = N
    if isinstance(output, Mapping):  # similarities of all with all are a loss in which examples interact
        output = {name: value for name, value in output.items() if not name.startswith(("logits_per", "loss"))}
    values = [output["logits"]] if isinstance(output, Mapping) and "logits" in output else list(_tensors(output))
    rows = next(v for v in values if v.is_floating_point() and v.requires_grad and len(v) == n)
    rows = rows.double().flatten(1)
    return torch.sin(rows + torch.linspace(0, 3, rows.shape[1])).mean(1)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.ndim:
            yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from _tensors(v)
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _tensors(v)


class _Timeout(BaseException):
    pass


def _ring(*_: Any) -> None:
    raise _Timeout


def run(work: tuple[str, str, str, bool, int]) -> dict[str, Any]:
    """Judge one class within a time limit."""
    model_type, mapping, name, dropout, seconds = work
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGALRM, _ring)
    signal.alarm(seconds)
    row: dict[str, Any] = {"model_type": model_type, "mapping": mapping, "class": name, "outcomes": {}}
    begun = time.monotonic()
    try:
        row["outcomes"] = {spec: vars(outcome) for spec, outcome in judge(model_type, name, dropout=dropout).items()}
    except _Timeout:
        row["outcomes"] = {"": vars(Outcome("too slow", f"more than {seconds} s"))}
    finally:
        signal.alarm(0)
    row["seconds"] = round(time.monotonic() - begun, 1)
    return row


def judge(model_type: str, name: str, *, dropout: bool) -> dict[str, Outcome]:
    """The outcome of each method on a class; ``not built`` or ``not run`` where that is not possible without it."""
    try:
        model = build(model_type, name, dropout=dropout)
    except Exception as error:  # noqa: BLE001 - whatever comes out is listed
        return {"": Outcome("not built", f"{type(error).__name__}: {error}"[:120])}
    problem = "no inputs"
    for given in candidates(model):
        try:
            case = Case(model, lambda m, given=given: losses(m, given), N)
            case.tolerance = tolerance(model, case.losses)
            truth = Truth(case)
            if truth.answer(SPECS[0]).loss.isfinite():
                break
            problem = "the loss is not finite"
        except Exception as error:  # noqa: BLE001 - the next inputs may do
            problem = f"{type(error).__name__}: {error}"[:120]
    else:
        return {"": Outcome("not run", problem)}
    found = {}
    for spec in SWEPT:
        try:
            large = zlib.crc32((spec + type(model).__name__).encode()) % 2 == 0
            found[spec] = Subject(spec, copy.deepcopy(model), large=large).step(truth)
        except Exception as error:  # noqa: BLE001 - whatever comes out is listed
            found[spec] = of_exception(error)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every class, not one of each model type")
    parser.add_argument("--only", default="", help="model types or class names, with commas")
    parser.add_argument("--part", default="1/1", help="i/k: the i-th of k parts of the list")
    parser.add_argument("--dropout", action="store_true", help="in training mode")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seconds", type=int, default=90, help="for one class")
    parser.add_argument("-v", "--verbose", action="store_true", help="whole messages")
    parser.add_argument("--output", type=Path, default=record.RESULTS / "sweep.json", help="where the record goes")
    arguments = parser.parse_args()
    only = set(filter(None, arguments.only.split(",")))
    part, parts = map(int, arguments.part.split("/"))
    work = [
        (*c, arguments.dropout, arguments.seconds)
        for c in classes(arguments.all or bool(only))
        if not only or only & set(c)
    ]
    work = work[part - 1 :: parts]
    rows = []
    with multiprocessing.get_context("fork").Pool(arguments.jobs, maxtasksperchild=20) as pool:
        for row in pool.imap_unordered(run, work):
            rows.append(row)
            for spec, o in row["outcomes"].items():
                text = o["detail"] if arguments.verbose and o["detail"] else o["reason"]
                print(
                    f"{row['class']:44s} {spec[:24]:24s} {o['kind']:10s} {o['error']:.1e} "
                    f"{row['seconds']:5.1f}s {text}",
                    flush=True,
                )
            record.write(
                arguments.output,
                {"tool": "sweep", "transformers": _version(), "dropout": arguments.dropout, "rows": rows},
            )
    pairs = [(spec or "(no model)", o["kind"]) for row in rows for spec, o in row["outcomes"].items()]
    print("\n" + record.table(record.counts(pairs), "method"))
    refused = [
        o["reason"]
        for row in rows
        for spec, o in row["outcomes"].items()
        if o["kind"] == "refused" and spec == SWEPT[0]
    ]
    print("refused because:\n" + record.reasons(refused))
    print(f"written to {arguments.output}; {dict(Counter(row['seconds'] > 30 for row in rows))}")


def _version() -> str:
    import transformers

    return str(transformers.__version__)


if __name__ == "__main__":
    main()
