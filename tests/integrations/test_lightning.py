"""Lightning: the weights are those of a loop written by hand, bit for bit; the rest of Lightning does not notice."""

from __future__ import annotations

import builtins
import csv
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

import deltasam

L = pytest.importorskip("lightning.pytorch", reason="needs lightning: pip install 'deltasam[lightning]'")

from lightning.pytorch.loggers import CSVLogger  # noqa: E402
from lightning.pytorch.plugins import MixedPrecision  # noqa: E402
from torchmetrics import Metric, MetricCollection  # noqa: E402
from torchmetrics.classification import (  # noqa: E402
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassPrecision,
    MulticlassRecall,
)

from deltasam.integrations.lightning import MethodCallback  # noqa: E402
from stacks.lightning_training import (  # noqa: E402
    BATCH,
    BATCHES,
    CLASSES,
    Classifier,
    PerExample,
    data,
    flat,
    lightning_weights,
    network,
    plain_weights,
    trainer_for,
)

SPECS = [
    "erm", "sam:rho=0.05", "asam:rho=0.05", "delta_sam:rho=0.05,weights=norms", "per_instance_sam:rho=0.05",
    "sam:rho=0.05@every=2", "sam:rho=0.05@decay=0.1", "sam:rho=0.05,share=global",
    "friendly_sam:rho=0.05",
]  # fmt: skip
FEW = ["sam:rho=0.05", "per_instance_sam:rho=0.05", "asam:rho=0.05,share=rank@every=2"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def float32() -> dict[str, Any]:
    return {"model": network(dtype=torch.float32), "dataset": data(torch.float32)}


@pytest.mark.parametrize("spec", SPECS)
def test_weights_are_those_of_a_plain_loop(spec: str) -> None:
    """With dropout, a scheduler, clipping."""
    found = lightning_weights(spec, gradient_clip_val=0.2)
    assert torch.equal(found, plain_weights(spec, clip=0.2))
    assert torch.equal(found, plain_weights("erm", clip=0.2)) == (spec == "erm")


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("count", [2, 4])  # 4 does not divide the 6 batches of an epoch
def test_accumulation(spec: str, count: int) -> None:
    found = lightning_weights(spec, accumulate_grad_batches=count, gradient_clip_val=0.2)
    assert torch.equal(found, plain_weights(spec, accumulate=count, clip=0.2))


@pytest.mark.parametrize("spec", ["erm", *FEW])
def test_bfloat16_autocast(spec: str) -> None:
    found = lightning_weights(spec, **float32(), precision="bf16-mixed", gradient_clip_val=0.2)
    assert torch.equal(found, plain_weights(spec, **float32(), autocast=torch.bfloat16, clip=0.2))


@pytest.mark.parametrize("spec", ["erm", *FEW])
def test_float16_with_a_loss_scaler(spec: str) -> None:
    """The first scale is too large, so steps are skipped before any counts; clipping sees unscaled gradients."""

    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=4)

    plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler())
    found = lightning_weights(spec, **float32(), plugins=[plugin], gradient_clip_val=0.2)
    plain = scaler()
    assert torch.equal(found, plain_weights(spec, **float32(), autocast=torch.float16, scaler=plain, clip=0.2))
    assert plugin.scaler.state_dict() == plain.state_dict()


def by_gradient_descent(module: nn.Module) -> torch.optim.Optimizer:
    """Unlike Adam, it sees the scale of a gradient."""
    return torch.optim.SGD(module.parameters(), lr=0.1)


class Tensors(PerExample):
    configure_optimizers = by_gradient_descent


class Functions(Tensors):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output = super().training_step(batch, batch_idx)
        return {**output, "example_losses": lambda: output["example_losses"]}


class Vectors(Tensors):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx)["example_losses"]


@pytest.mark.filterwarnings("ignore:PerInstanceSAM goes one example at a time")
@pytest.mark.parametrize("spec", ["delta_sam:rho=0.05,weights=slopes", "per_instance_sam:rho=0.05,unsupported=loop"])
def test_losses_of_examples(spec: str) -> None:
    """A method that asks is given the training_step's, as a tensor or a function; divided, as Lightning does."""

    def weights(module: Any) -> Tensor:
        torch.manual_seed(0)
        meeting = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, CLASSES)).double()
        return lightning_weights(spec, model=meeting, module=module, accumulate_grad_batches=2)

    found = weights(Tensors)
    assert torch.equal(found, weights(Functions))
    torch.testing.assert_close(found, weights(Vectors), rtol=1e-9, atol=1e-12)  # the mean comes after the division
    with pytest.raises(ValueError, match="one loss per example"):
        weights(Classifier)


def test_example_losses_do_not_reach_the_callbacks() -> None:
    seen: list[Any] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            seen.append(outputs)

    lightning_weights("sam", module=PerExample, max_steps=2, callbacks=[Look()])
    assert [sorted(outputs) for outputs in seen] == [["loss"]] * 2
    assert all(not o["loss"].requires_grad and o["loss"].ndim == 0 for o in seen)


# Distributed


def in_two_processes(cells: list[str], folder: Path) -> dict[str, Tensor]:
    script = Path(__file__).parents[1] / "stacks" / "lightning_ddp.py"
    source = str(Path(deltasam.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(folder / "weights.pt"), *cells]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return torch.load(folder / "weights.pt", weights_only=True)


@pytest.mark.slow
def test_two_processes_are_one_with_the_whole_batch(tmp_path: Path) -> None:
    whole = ["per_instance_sam:rho=0.05 1", "sam:rho=0.05,share=global@every=2 2"]
    own = "sam:rho=0.05 1"
    found = in_two_processes([*whole, own], tmp_path)
    for cell in whole:
        spec, accumulate = cell.split()
        expected = plain_weights(spec, model=network(dropout=0), max_epochs=1, accumulate=int(accumulate))
        torch.testing.assert_close(found[cell], expected, rtol=1e-12, atol=1e-12)
    # Plain SAM perturbs in each process on its own: two micro-batches with the rows of one process each.
    rows = [i for start in range(0, BATCH * BATCHES, BATCH) for r in (0, 1) for i in range(start + r, start + BATCH, 2)]
    apart = {"dataset": Subset(data(), rows), "batch_size": BATCH // 2, "accumulate": 2}
    expected = plain_weights("sam:rho=0.05", model=network(dropout=0), max_epochs=1, **apart)
    torch.testing.assert_close(found[own], expected, rtol=1e-12, atol=1e-12)


# Checkpoints


@pytest.mark.parametrize(
    "spec", ["sam:rho=0.05@every=2", "per_instance_sam:rho=0.05@decay=0", "friendly_sam:rho=0.05", "erm"]
)
def test_resuming_is_as_if_it_had_never_stopped(spec: str, tmp_path: Path) -> None:
    """From after an odd number of steps. Lightning does not save the random state, so every batch has its own seed."""

    class Seeded(Classifier):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            torch.manual_seed(self.global_step)

    def train(checkpoint: str | None = None) -> Tensor:
        module, keep = Seeded(network()), L.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        trainer = trainer_for(spec, callbacks=[keep], enable_checkpointing=True, max_epochs=3, limit_train_batches=5)
        known = inspect.signature(trainer.fit).parameters
        safely = {"weights_only": True} if "weights_only" in known else {}  # Lightning has it from 2.6 on
        trainer.fit(module, DataLoader(data(), batch_size=BATCH), ckpt_path=checkpoint, **safely)
        return flat(module.model)

    unbroken = train()
    assert torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["global_step"] == 5
    assert torch.equal(train(str(tmp_path / "epoch=0.ckpt")), unbroken)


# What Lightning sees


class Rows(Metric):
    """Changes its state in place."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", torch.tensor(0))

    def update(self, labels: Tensor) -> None:
        self.rows += len(labels)

    def compute(self) -> Tensor:
        return self.rows


class Counting(Classifier):
    """Logs in every way, and counts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.accuracy, self.auroc = MulticlassAccuracy(CLASSES), MulticlassAUROC(CLASSES)
        self.group = MetricCollection([MulticlassPrecision(CLASSES), MulticlassRecall(CLASSES)])  # they share states
        self.rows = Rows()
        self.calls: list[bool] = []
        self.backwards: list[str] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.calls.append(deltasam.in_later_pass())
        logits = self.model(batch[0])
        self.accuracy(logits, batch[1]), self.auroc.update(logits, batch[1]), self.group.update(logits, batch[1])
        self.rows(batch[1])
        self.log("rows", self.rows, on_step=False, on_epoch=True)
        self.log_dict(self.group, on_step=False, on_epoch=True)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log("auroc", self.auroc, on_step=False, on_epoch=True)
        loss = F.cross_entropy(logits, batch[1])
        self.log_dict({"loss": loss, "count": 1.0}, on_step=False, on_epoch=True, reduce_fx="sum")
        return loss

    def on_before_backward(self, loss: Tensor) -> None:
        self.backwards.append("before")

    def on_after_backward(self) -> None:
        self.backwards.append("after")


def test_logs_metrics_and_hooks_see_one_training_step() -> None:
    """What is logged in an epoch at the first weights (learning rate 0) does not depend on the method."""

    def logged(spec: str) -> tuple[dict[str, Tensor], Counting]:
        module = Counting(network(dropout=0))
        module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0)
        trainer = trainer_for(spec, max_epochs=1)
        trainer.fit(module, DataLoader(data(), batch_size=BATCH))
        return dict(trainer.callback_metrics), module

    plain, _ = logged("erm")
    found, module = logged("sam:rho=0.5")
    assert module.calls == [False, True, True, *[False, True] * (BATCHES - 1)]  # the first looks whether it repeats
    assert module.backwards == ["before", "after"] * BATCHES
    assert found["count"] == BATCHES
    assert found["rows"] == BATCHES * BATCH
    names = ("accuracy", "accuracy_step", "accuracy_epoch", "auroc", "loss", "MulticlassPrecision", "MulticlassRecall")
    for name in names:
        assert torch.equal(found[name], plain[name]), name
    assert module.accuracy.update_count == module.auroc.update_count == 0  # Lightning has reset them
    assert "log" not in vars(module)


def test_the_steps_metrics_are_logged(tmp_path: Path) -> None:
    """In the units of the training_step's loss, with accumulation and loss scaling."""

    def rows(**options: Any) -> list[dict[str, float]]:
        logger = CSVLogger(tmp_path, name=None)
        options = {"model": network(dropout=0), "max_epochs": 1, "log_every_n_steps": 1, **options}
        lightning_weights("sam:rho=0.05", logger=logger, **options)
        with (Path(logger.log_dir) / "metrics.csv").open() as file:
            found = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        return [row for row in found if "method/loss" in row]

    model, (x, y) = network(dropout=0), data()[:BATCH]
    step = deltasam.SAM(model, rho=0.05).backward(lambda: F.cross_entropy(model(x), y))
    plain = rows()
    assert len(plain) == BATCHES
    names = {"method/loss", "method/perturbed_loss", "method/ascent_norm", "method/radius_ratio"}
    assert names <= set(plain[0])
    assert all(plain[0][f"method/{name}"] == pytest.approx(float(v)) for name, v in step.metrics.items())
    assert plain[0]["method/loss"] == pytest.approx(plain[0]["train_loss_step"])
    accumulated = rows(accumulate_grad_batches=2)
    assert len(accumulated) == BATCHES // 2
    assert all(row["method/loss"] == pytest.approx(row["train_loss_step"]) for row in accumulated)

    class Small(Classifier):
        """Its gradients are nothing in float16, unless they are scaled."""

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) / 2**20

    half: dict[str, Any] = {"model": network(dropout=0, dtype=torch.float32), "dataset": data(torch.float32)}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    small = rows(**half, module=Small, plugins=[MixedPrecision("16-mixed", device="cpu", scaler=scaler)])
    assert small[0]["method/ascent_norm"] * 2**20 == pytest.approx(plain[0]["method/ascent_norm"], rel=0.01)


@pytest.mark.parametrize("spec", ["sam:rho=0.05", "sam:rho=0.05,share=rank"])
def test_a_skipped_step_changes_nothing(spec: str) -> None:
    class Skips(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx != 1 else super().training_step(batch, batch_idx)

    before = flat(network())
    assert not torch.equal(lightning_weights(spec, module=Skips, max_epochs=1), before)
    assert torch.equal(lightning_weights(spec, module=Skips, max_epochs=1, limit_train_batches=1), before)


def test_batches_that_wait_are_forgotten_when_an_epoch_is_cut_short() -> None:
    """As Lightning forgets the gradients of a step that it does not end."""

    class CutShort(Classifier):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 3 else None

        configure_optimizers = by_gradient_descent

    class TwoBatches(CutShort):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    for spec in ("sam:rho=0.05", "sam:rho=0.05,share=rank"):
        found = [
            lightning_weights(spec, model=network(dropout=0), module=module, accumulate_grad_batches=2)
            for module in (CutShort, TwoBatches)
        ]
        assert torch.equal(*found)


def test_lightning_is_restored() -> None:
    class Fails(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if deltasam.in_later_pass() and batch_idx == 3:
                raise OSError("the data is gone")
            return super().training_step(batch, batch_idx)

    for module, error in ((Classifier(network()), None), (Fails(network()), OSError)):
        trainer = trainer_for("sam:rho=0.05", max_epochs=1)
        loop = trainer.fit_loop.epoch_loop.automatic_optimization
        before, strategy = dict(vars(loop)).keys(), set(vars(trainer.strategy))
        if error:
            with pytest.raises(error, match="the data is gone"):
                trainer.fit(module, DataLoader(data(), batch_size=BATCH))
        else:
            trainer.fit(module, DataLoader(data(), batch_size=BATCH))
        assert vars(loop).keys() == before
        assert set(vars(trainer.strategy)) == strategy
        assert "log" not in vars(module)
        assert module.training_step.__func__ is type(module).training_step


def test_a_trainer_fits_twice() -> None:
    """A second fit has another optimizer, and with it the schedule starts again."""
    spec = "sam:rho=0.05@every=4"
    trainer, loader = trainer_for(spec, max_epochs=1), DataLoader(data(), batch_size=BATCH)
    models = [network(), network()]
    for model in models:
        torch.manual_seed(5)
        trainer.fit_loop.epoch_progress.reset()
        trainer.fit_loop.epoch_loop.batch_progress.reset()
        trainer.fit(Classifier(model), loader)
    assert torch.equal(flat(models[0]), plain_weights(spec, max_epochs=1))
    assert torch.equal(flat(models[0]), flat(models[1]))


def test_pytorch_lightning_is_the_same() -> None:
    pl = pytest.importorskip("pytorch_lightning", "2.6", "needs pytorch-lightning 2.6, the other name of Lightning")

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network()

        training_step, configure_optimizers = Classifier.training_step, Classifier.configure_optimizers

    module, spec = Module(), "per_instance_sam:rho=0.05@every=2"
    trainer = pl.Trainer(
        callbacks=[MethodCallback(spec)], max_epochs=2, logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    torch.manual_seed(5)
    trainer.fit(module, DataLoader(data(), batch_size=BATCH))
    assert torch.equal(flat(module.model), plain_weights(spec))


# Refusals


class Manual(Classifier):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.automatic_optimization = False


class TakesTheIterator(Classifier):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        raise AssertionError("must not be called")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Manual, r"Manual has automatic_optimization=False; call .*make_method\(...\).backward\(closure\)"),
        (TakesTheIterator, r"training_step takes a dataloader_iter, .* change it to take \(batch, batch_idx\)"),
    ],
)
def test_what_cannot_be_exact_is_refused(module: Any, message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        lightning_weights("sam", module=module)


def test_a_static_graph_is_refused() -> None:
    callback, trainer, module = MethodCallback("sam"), trainer_for("sam"), Classifier(network())
    callback.setup(trainer, module, "fit")
    trainer.strategy.model = nn.Linear(1, 1)
    trainer.strategy.model.static_graph = True  # as DistributedDataParallel has it
    with pytest.raises(NotImplementedError, match=r"static_graph=True .* leave static_graph out"):
        callback.on_train_start(trainer, module)


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy", "XLAStrategy"])
def test_strategies_with_an_engine_of_their_own_are_refused(name: str) -> None:
    """Most of them cannot be made without their hardware, so only the class is theirs."""
    strategy = getattr(L.strategies, name)
    trainer = trainer_for("sam")
    trainer.strategy.__class__ = type(name, (strategy,), {})
    with pytest.raises(NotImplementedError, match=f"{name} shards the weights or .*use strategy='ddp'"):
        MethodCallback("sam").setup(trainer, Classifier(network()), "fit")


def test_a_bad_spec() -> None:
    with pytest.raises(ValueError, match="unknown method 'samm'; did you mean 'sam'"):
        lightning_weights("samm")


def test_without_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_lightning(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "lightning":
            raise ModuleNotFoundError("No module named 'lightning'", name="lightning")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_lightning)
    monkeypatch.delitem(sys.modules, "deltasam.integrations.lightning")
    with pytest.raises(
        ImportError, match=r"integrations.lightning needs the library 'lightning'.*deltasam\[lightning\]"
    ):
        importlib.import_module("deltasam.integrations.lightning")


class Flattened(L.LightningModule):
    """Texts in one row, with their position ids."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(8, 4), nn.Linear(4, 8)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.head(self.table(batch["input_ids"]))
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("positions", [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("spec", ["sam:rho=0.1", "per_instance_sam:rho=0.1"])
def test_packed_rows_are_refused_where_examples_count(spec: str, positions: list[int], tmp_path: Path) -> None:
    batch = {"input_ids": torch.tensor([[1, 2, 3, 4, 5]] * 2), "position_ids": torch.tensor([positions] * 2)}
    trainer = trainer_for(spec, max_epochs=1, default_root_dir=tmp_path)
    loader = DataLoader([batch], batch_size=None)
    if "per_instance" in spec and positions[3] == 0:
        with pytest.raises(ValueError, match=r"a row of the batch holds several .*pad instead of packing"):
            trainer.fit(Flattened(), loader)
    else:
        trainer.fit(Flattened(), loader)


def test_parameters_that_the_module_does_not_hold_are_refused(tmp_path: Path) -> None:
    class Hidden(Classifier):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            self.elsewhere = [nn.Parameter(torch.ones(3))]  # no parameter of a module that stands in a list
            return torch.optim.SGD([*self.parameters(), *self.elsewhere], lr=0.1)

    with pytest.raises(ValueError, match=r"the method's model does not hold \(one of shape \[3\]\)"):
        lightning_weights("sam:rho=0.1", module=Hidden, default_root_dir=tmp_path)


def test_erm_is_the_plain_trainer_bit_for_bit(tmp_path: Path) -> None:
    weights = []
    for with_method in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(network(), nn.Dropout(0.3))
        options = {"max_epochs": 2, "default_root_dir": tmp_path}
        trainer = trainer_for("erm", **options)
        if not with_method:
            trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, MethodCallback)]
        trainer.fit(Classifier(model), DataLoader(data(), batch_size=BATCH, shuffle=True))
        weights.append(flat(model))
    assert torch.equal(*weights)
