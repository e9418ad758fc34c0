"""Every tuner of PEFT, with its variants, against the oracle.

    python benchmarks/adversary/peft_sweep.py --jobs 2
    python benchmarks/adversary/peft_sweep.py --only loha,randlora -v     # whole messages

Each configuration is put on a tiny encoder, decoder or convolutional model in float64; what it trains is moved away
from its start (adapters that begin at zero would hide mistakes). Then, on four examples, exact per-instance SAM in
its variants, the norms of the examples' gradients, delta-SAM and SAM are judged beside a loop over deep copies.
"""

from __future__ import annotations

import argparse
import copy
import logging
import multiprocessing
import os
import signal
import sys
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from torch import nn

from adversary import record
from adversary.judge import RHO, SPECS, Case, Outcome, Subject, Truth, tolerance, worst

N, TOKENS, WIDTH, SECONDS = 4, 6, 16, 120
LAYERS = ["query", "value"]
LINEAR = ["q_proj", "v_proj"]
Setup = tuple[str, str, dict[str, Any]]
"""Which base, which configuration class, and its arguments."""


def _encoder(cls: str, **arguments: Any) -> Setup:
    return "encoder", cls, arguments


def _decoder(cls: str, **arguments: Any) -> Setup:
    return "decoder", cls, arguments


SETUPS: dict[str, Setup] = {
    "lora": _encoder("LoraConfig", r=4, target_modules=LAYERS),
    "lora rslora": _encoder("LoraConfig", r=4, target_modules=LAYERS, use_rslora=True),
    "lora dora": _encoder("LoraConfig", r=4, target_modules=LAYERS, use_dora=True),
    "lora dropout": _encoder("LoraConfig", r=4, target_modules=LAYERS, lora_dropout=0.2),
    "lora dora dropout": _encoder("LoraConfig", r=4, target_modules=LAYERS, use_dora=True, lora_dropout=0.2),
    "lora bias": _encoder("LoraConfig", r=4, target_modules=LAYERS, lora_bias=True),
    "lora bias all": _encoder("LoraConfig", r=4, target_modules=LAYERS, bias="all"),
    "lora all-linear": _encoder("LoraConfig", r=4, target_modules="all-linear"),
    "lora modules to save": _encoder("LoraConfig", r=4, target_modules=LAYERS, modules_to_save=["word_embeddings"]),
    "lora embeddings": _encoder("LoraConfig", r=4, target_modules=["word_embeddings", "query"]),
    "lora dora embeddings": _encoder("LoraConfig", r=4, target_modules=["word_embeddings", "query"], use_dora=True),
    "lora token indices": _encoder(
        "LoraConfig", r=4, target_modules=LAYERS, trainable_token_indices={"word_embeddings": [5, 6, 7, 8]}
    ),
    "lora conv": ("convolutions", "LoraConfig", {"r": 2, "target_modules": ["one", "two"]}),
    "lora dora conv": ("convolutions", "LoraConfig", {"r": 2, "target_modules": ["one", "two"], "use_dora": True}),
    "lora decoder": _decoder("LoraConfig", r=4, target_modules=LINEAR),
    "lora parameters": _decoder("LoraConfig", r=2, target_modules=[], target_parameters=["q_proj.weight"]),
    "adalora": _encoder("AdaLoraConfig", init_r=4, target_r=2, total_step=100, target_modules=LAYERS),
    "loha": _encoder("LoHaConfig", r=4, target_modules=LAYERS),
    "loha conv": (
        "convolutions",
        "LoHaConfig",
        {"r": 2, "target_modules": ["one", "two"], "use_effective_conv2d": True},
    ),
    "lokr": _encoder("LoKrConfig", r=4, target_modules=LAYERS),
    "lokr both": _encoder("LoKrConfig", r=2, target_modules=LAYERS, decompose_both=True, decompose_factor=4),
    "randlora": _encoder("RandLoraConfig", r=4, target_modules=LAYERS),
    "oft": _encoder("OFTConfig", oft_block_size=4, target_modules=LAYERS),
    "oft exact cayley": _encoder("OFTConfig", oft_block_size=4, target_modules=LAYERS, use_cayley_neumann=False),
    "boft": _encoder("BOFTConfig", boft_block_size=4, target_modules=LAYERS),
    "ia3": _encoder("IA3Config", target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]),
    "vera": _encoder("VeraConfig", r=4, target_modules=LAYERS),
    "pvera": _encoder("PveraConfig", r=4, target_modules=LAYERS),
    "prompt tuning": _encoder("PromptTuningConfig", num_virtual_tokens=3),
    "prompt tuning decoder": _decoder("PromptTuningConfig", num_virtual_tokens=3),
    "multitask prompt": _decoder("MultitaskPromptTuningConfig", num_virtual_tokens=3, num_tasks=2),
    "prefix": _encoder("PrefixTuningConfig", num_virtual_tokens=3),
    "prefix projection": _encoder(
        "PrefixTuningConfig", num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8
    ),
    "prefix decoder": _decoder("PrefixTuningConfig", num_virtual_tokens=3),
    "p-tuning": _encoder("PromptEncoderConfig", num_virtual_tokens=3, encoder_hidden_size=8),
    "p-tuning lstm": _encoder(
        "PromptEncoderConfig", num_virtual_tokens=3, encoder_hidden_size=8, encoder_reparameterization_type="LSTM"
    ),
    "adaption prompt": _decoder("AdaptionPromptConfig", adapter_len=3, adapter_layers=2),
    "cpt": _decoder("CPTConfig", cpt_token_ids=[5, 6, 7], cpt_mask=[1, 1, 1], cpt_tokens_type_mask=[1, 2, 2]),
    "fourierft": _encoder("FourierFTConfig", n_frequency=20, target_modules=LAYERS),
    "waveft": _encoder("WaveFTConfig", n_frequency=20, target_modules=LAYERS),
    "hra": _encoder("HRAConfig", r=4, target_modules=LAYERS),
    "hra gram-schmidt": _encoder("HRAConfig", r=4, target_modules=LAYERS, apply_GS=True),
    "miss": _encoder("MissConfig", r=4, target_modules=LAYERS),
    "miss bat": _encoder("MissConfig", r=4, target_modules=LAYERS, init_weights="bat"),
    "vblora": _encoder("VBLoRAConfig", r=2, num_vectors=16, vector_length=8, topk=2, target_modules=LAYERS),
    "poly": _encoder("PolyConfig", r=4, target_modules=LAYERS, n_tasks=2, n_skills=2),
    "ln tuning": _encoder("LNTuningConfig", target_modules=["LayerNorm"]),
    "trainable tokens": _encoder(
        "TrainableTokensConfig", token_indices=[5, 6, 7, 8], target_modules=["word_embeddings"]
    ),
    "shira": _encoder("ShiraConfig", r=4, target_modules=LAYERS),
    "c3a": _encoder("C3AConfig", block_size=8, target_modules=LAYERS),
    "road": _encoder("RoadConfig", variant="road_1", group_size=4, target_modules=LAYERS),
    "road 4": _encoder("RoadConfig", variant="road_4", group_size=4, target_modules=LAYERS),
    **{
        name: _encoder(f"{name.capitalize()}Config", r=4, target_modules=LAYERS)
        for name in ("hira", "delora", "lily", "psoft", "glora", "deft", "adamss", "peanut")
    },
    "gralora": _encoder("GraloraConfig", r=4, gralora_k=2, target_modules=LAYERS),
    "tinylora": _encoder("TinyLoraConfig", target_modules=LAYERS),
    "unilora": _encoder("UniLoraConfig", r=4, target_modules=LAYERS),
    "beft": _encoder("BeftConfig", target_modules=LAYERS),
    "frod": _encoder("FrodConfig", target_modules=LAYERS),
    "osf": _encoder("OSFConfig", target_modules=LAYERS),
}


class Convolutions(nn.Module):
    """Two convolutions and a head, [n, 3, 8, 8] to [n, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits."""
        return self.head(self.two(torch.tanh(self.one(x))).mean((2, 3)))


def base(kind: str) -> nn.Module:
    """A tiny model."""
    from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    if kind == "convolutions":
        return Convolutions()
    if kind == "decoder":
        return LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=40, pad_token_id=0))
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**sizes, max_position_embeddings=40, num_labels=3, **quiet))


def build(name: str) -> nn.Module:
    """The base with the tuner, in float64, away from the start."""
    import peft

    kind, cls, arguments = SETUPS[name]
    task = {"encoder": "SEQ_CLS", "decoder": "CAUSAL_LM", "convolutions": None}[kind]
    model = peft.get_peft_model(base(kind), getattr(peft, cls)(task_type=task, **arguments)).double().train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def case(name: str, model: nn.Module, seed: int) -> Case:
    """Four examples, one of which is padded."""
    kind = SETUPS[name][0]
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (N,), generator=g)
    if kind == "convolutions":
        x = torch.randn(N, 3, 8, 8, generator=g, dtype=torch.float64)
        return Case(model, lambda m: F.cross_entropy(m(x), labels, reduction="none"), N)
    ids, mask = torch.randint(4, 50, (N, TOKENS), generator=g), torch.ones(N, TOKENS, dtype=torch.long)
    mask[1, TOKENS - 2 :] = 0
    ids = ids * mask
    ids[::2, 2] = 0  # the id of padding where it is not masked: tables give its row no gradient
    more = {"task_ids": torch.zeros(N, dtype=torch.long)} if "multitask" in name or name == "poly" else {}

    def logits(m: nn.Module) -> torch.Tensor:
        return m(input_ids=ids, attention_mask=mask, **more).logits

    if kind == "encoder":
        return Case(model, lambda m: F.cross_entropy(logits(m), labels, reduction="none"), N)
    # a decoder's virtual tokens may come back in front of the logits
    return Case(
        model,
        lambda m: F.cross_entropy(logits(m)[:, -TOKENS:-1].transpose(1, 2), ids[:, 1:], reduction="none").mean(1),
        N,
    )


def judge(name: str) -> dict[str, Outcome]:
    """The outcome of each method on a configuration, in two steps with other examples."""
    try:
        model = build(name)
    except Exception as error:  # noqa: BLE001 - whatever comes out is listed
        return {"": Outcome("not built", f"{type(error).__name__}: {error}"[:150])}
    try:
        cases = [case(name, model, seed) for seed in (0, 1)]
        for one in cases:
            one.tolerance = tolerance(model, one.losses)
        truths = [Truth(one) for one in cases]
        truths[0].answer(SPECS[0])
    except Exception as error:  # noqa: BLE001 - whatever comes out is listed
        return {"": Outcome("not run", f"{type(error).__name__}: {error}"[:150])}
    found = {}
    for spec in SPECS:
        subject = Subject(spec, copy.deepcopy(model), large=zlib.crc32((spec + name).encode()) % 2 == 0)
        found[spec] = worst([subject.step(truth) for truth in truths])
    return found


class _Timeout(BaseException):
    pass


def _ring(*_: Any) -> None:
    raise _Timeout


def run(name: str) -> dict[str, Any]:
    """Judge one configuration within a time limit."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGALRM, _ring)
    signal.alarm(SECONDS)
    begun = time.monotonic()
    try:
        outcomes = judge(name)
    except _Timeout:
        outcomes = {"": Outcome("too slow", f"more than {SECONDS} s")}
    finally:
        signal.alarm(0)
    return {
        "configuration": name,
        "seconds": round(time.monotonic() - begun, 1),
        "outcomes": {s: vars(o) for s, o in outcomes.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="configurations, with commas")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("-v", "--verbose", action="store_true", help="whole messages")
    parser.add_argument("--output", type=Path, default=record.RESULTS / "peft.json", help="where the record goes")
    arguments = parser.parse_args()
    only = set(filter(None, arguments.only.split(",")))
    if unknown := only - SETUPS.keys():
        parser.error(f"no configuration {', '.join(sorted(unknown))}; there are: {', '.join(SETUPS)}")
    rows = []
    with multiprocessing.get_context("fork").Pool(arguments.jobs) as pool:
        for row in pool.imap_unordered(run, [name for name in SETUPS if not only or name in only]):
            rows.append(row)
            for spec, o in row["outcomes"].items():
                text = o["detail"] if arguments.verbose and o["detail"] else o["reason"]
                print(
                    f"{row['configuration']:24s} {spec:48s} {o['kind']:10s} {o['error']:.1e} "
                    f"{row['seconds']:5.1f}s {text}",
                    flush=True,
                )
    import peft

    record.write(arguments.output, {"tool": "peft", "peft": peft.__version__, "rho": RHO, "rows": rows})
    pairs = [(spec or "(no model)", o["kind"]) for row in rows for spec, o in row["outcomes"].items()]
    print("\n" + record.table(record.counts(pairs), "method"))
    refused = [
        f"{row['configuration']}: {o['reason']}"
        for row in rows
        for spec, o in row["outcomes"].items()
        if spec == SPECS[0] and o["kind"] == "refused"
    ]
    print("refused because:\n" + record.reasons(refused, 60))
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
