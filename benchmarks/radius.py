"""Which radius a method wants where labels are wrong: a search over radii, on real sentences.

    OMP_NUM_THREADS=1 python benchmarks/radius.py --data ../data/glue --record benchmarks/results/radius.json
    python benchmarks/radius.py --data ../data/glue --methods erm,sam:rho=0.1 --seeds 0

SST-2, short sentences, 2,000 training rows, 30 % of them with the wrong label; the last two layers of MiniLM and a new
head, on the hidden states that the layers below give, which are computed once. The epoch is chosen by rows whose labels
are wrong as often, and judged on rows whose labels are right: accuracy there at the chosen epoch and at the last.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import deltasam
from deltasam.experiment.config import BUNDLED_MODEL
from deltasam.experiment.model import locate_model, quiet_transformers

TRAINING, SELECTION, TEST = 2000, 1000, 2872
WRONG, EPOCHS, BATCH, LEARNING_RATE, TOKENS, TRAINED = 0.3, 6, 32, 1e-3, 24, 2
SPECS = "erm,sam:rho=0.1,delta_sam:rho=0.02,delta_sam:rho=0.05,delta_sam:rho=0.1,delta_sam:rho=0.2"


class Top(nn.Module):
    """The last layers of an encoder, and a classifier of the mean over the words.

    Args:
        layers: They take hidden states and a mask.
        width: Of the hidden states.
    """

    def __init__(self, layers: nn.ModuleList, width: int) -> None:
        super().__init__()
        self.layers, self.head = layers, nn.Linear(width, 2)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The logits [n, 2] of hidden states [n, TOKENS, width] and a mask [n, TOKENS]."""
        allowed = mask[:, None, None, :].bool()
        for layer in self.layers:
            hidden = layer(hidden, allowed)
        words = mask[:, :, None].to(hidden.dtype)
        return self.head((hidden * words).sum(1) / words.sum(1))


def encoder() -> nn.Module:
    """MiniLM, without dropout."""
    from transformers import AutoModel

    with quiet_transformers():
        return AutoModel.from_pretrained(locate_model(BUNDLED_MODEL)).eval()


def rows(folder: Path, seed: int) -> tuple[list[str], Tensor, Tensor]:
    """Sentences, their labels, and the labels with some wrong ones; drawn anew for each seed."""
    with gzip.open(folder / "sst2/train.jsonl.gz", "rt", encoding="utf-8") as lines:
        found = [row for row in map(json.loads, lines) if 6 <= len(row["sentence"].split()) <= 18]
    generator = torch.Generator().manual_seed(seed)
    count = TRAINING + SELECTION + TEST
    chosen = [found[i] for i in torch.randperm(len(found), generator=generator)[:count].tolist()]
    labels = torch.tensor([row["label"] for row in chosen])
    wrong = torch.rand(count, generator=generator) < WRONG
    return [row["sentence"] for row in chosen], labels, torch.where(wrong, 1 - labels, labels)


def hidden_states(model: nn.Module, sentences: list[str]) -> tuple[Tensor, Tensor]:
    """What the layers that are not trained make of sentences [n, TOKENS, width], and their mask [n, TOKENS]."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(locate_model(BUNDLED_MODEL))
    made = tokenizer(sentences, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    with torch.no_grad():
        parts = [
            model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1 - TRAINED]
            for ids, mask in zip(made["input_ids"].split(256), made["attention_mask"].split(256), strict=True)
        ]
    return torch.cat(parts), made["attention_mask"]


def run(spec: str, seed: int, hidden: Tensor, mask: Tensor, right: Tensor, given: Tensor) -> list[dict[str, float]]:
    """Train, and judge after every epoch."""
    torch.manual_seed(seed)
    top = Top(encoder().encoder.layer[-TRAINED:], hidden.shape[-1])
    optimizer = torch.optim.AdamW(top.parameters(), lr=LEARNING_RATE)
    steps = EPOCHS * (TRAINING // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / 40) * (1 - s / steps))
    method, found = deltasam.make_method(spec, top), []
    method.follow(optimizer)
    selection, test = slice(TRAINING, TRAINING + SELECTION), slice(TRAINING + SELECTION, None)
    for _ in range(EPOCHS):
        for batch in torch.randperm(TRAINING).split(BATCH):
            if len(batch) == BATCH:
                method.backward(lambda b=batch: F.cross_entropy(top(hidden[b], mask[b]), given[b], reduction="none"))
                nn.utils.clip_grad_norm_(top.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
        with torch.no_grad():
            logits = torch.cat([top(h, m) for h, m in zip(hidden.split(512), mask.split(512), strict=True)])
        guess = logits.argmax(1)
        found.append(
            {
                "fit": float((guess == given)[:TRAINING].float().mean()),
                "noisy": float((guess == given)[selection].float().mean()),
                "accuracy": float((guess == right)[test].float().mean()),
                "nll": float(F.cross_entropy(logits[test], right[test])),
            }
        )
    return found


def table(record: dict[str, Any]) -> Table:
    """Means over the seeds."""
    shown = Table(title=f"{WRONG:.0%} wrong labels; means over seeds")
    for number, name in enumerate(("method", "chosen epoch", "last epoch", "NLL, last", "fit of training labels")):
        shown.add_column(name, justify="right" if number else "left")
    for spec, by_seed in record["runs"].items():
        chosen = [max(epochs, key=lambda e: e["noisy"])["accuracy"] for epochs in by_seed.values()]
        last = [epochs[-1] for epochs in by_seed.values()]
        columns = [chosen, *([e[k] for e in last] for k in ("accuracy", "nll", "fit"))]
        shown.add_row(spec, *(f"{statistics.fmean(column):.3f}" for column in columns))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of GLUE's tasks")
    parser.add_argument("--methods", default=SPECS, help="specs, comma-separated")
    parser.add_argument("--seeds", default="0,1", help="comma-separated")
    parser.add_argument("--record", type=Path, help="JSON file for every epoch of every run")
    options = parser.parse_args()
    specs, runs = deltasam.split_specs(options.methods), {}
    record: dict[str, Any] = {"torch": torch.__version__, "runs": runs}
    console = Console(stderr=True)
    for seed in map(int, options.seeds.split(",")):
        sentences, right, given = rows(options.data, seed)
        hidden, mask = hidden_states(encoder(), sentences)
        for spec in track(specs, f"seed {seed}", console=console):
            runs.setdefault(spec, {})[str(seed)] = run(spec, seed, hidden, mask, right, given)
            if options.record:
                options.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    Console().print(table(record))


if __name__ == "__main__":
    main()
