"""The trainer: one loop for frozen and dense networks and jackpots, images and graphs."""

from __future__ import annotations

import contextlib
import csv
import io
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import frozen_kernels as fk
from frozen_kernels.files import write_whole

from . import checkpoint, images, processes
from .batches import Batch, Plan
from .gin import GIN
from .graphs import UNLABELLED, ogbn_arxiv
from .models import build, initialise_
from .parts import Data, Part
from .settings import Optimizer, Settings
from .weights import load_weights_

COLUMNS = (
    "epoch", "step", "lr", "loss", "train_accuracy", "validation_accuracy", "test_accuracy", "sparsity", "seconds",
)  # fmt: skip
CHECKPOINT, LOG, TICKET, WEIGHTS = "checkpoint.pt", "log.csv", "ticket.safetensors", "model.safetensors"
POSTFIX_EVERY = 20  # steps: reading the loss waits for the device
RECALIBRATE = 100  # batches at most, of which batch norm's statistics are made anew


class Stopped(Exception):
    """The run was interrupted and its checkpoint written."""


@dataclass(frozen=True)
class Result:
    """What a finished run left: the file, its bytes, those of its masks (0 for dense weights), and test accuracy.

    `compared`: of a jackpot, test accuracies of its stages with batch norm recalibrated, by name.
    """

    path: Path
    file_bytes: int
    mask_bytes: int
    accuracy: float
    compared: dict[str, float]


def load_data(settings: Settings, device: torch.device) -> Data:
    """The data that the settings name. FileNotFoundError or ValueError names the file and what is wrong."""
    source, classes = settings.data, settings.model.classes
    if source.kind == "digits":
        if classes != 10:
            raise ValueError(f"model.classes: {classes}, but there are 10 digits")
        return images.with_validation(*images.digits(), source.validation, settings.seed)
    path = Path(str(source.path))
    if source.kind == "ogbn_arxiv":
        return ogbn_arxiv(path, classes, settings.model.features or 0, device)
    readers: dict[str, Callable[[Path, int, int], tuple[Part, Part]]] = {
        "cifar10": images.cifar10, "cifar100": images.cifar100, "imagenet": images.imagenet,
    }  # fmt: skip
    read = readers[source.kind]
    return images.with_validation(*read(path, classes, settings.seed), source.validation, settings.seed)


def build_dense(settings: Settings, data: Data) -> nn.Module:
    """The network of the settings with pre-trained weights, or with those that training starts from, on the CPU."""
    torch.manual_seed(settings.seed)  # of what a model may draw in training, such as dropout
    name, classes = settings.model.name, settings.model.classes
    model = GIN(settings.model.features or 0, classes) if name == "gin" else build(name, classes)
    if isinstance(model, GIN) and data.edges is not None:
        model.attach(data.edges.cpu(), data.nodes)
    if settings.jackpot is not None:
        load_weights_(model, Path(settings.jackpot.weights))
    elif settings.freeze is None:
        initialise_(model, settings.seed)
    return model


def build_model(settings: Settings, data: Data) -> nn.Module:
    """The network of the settings, frozen or with the weights that training starts from, on the CPU."""
    model = build_dense(settings, data)
    if settings.jackpot is not None:
        model.requires_grad_(False)  # affine batch norm, biases and the classifier stay as they are
    if settings.freeze is not None:
        fk.freeze_(model, settings.freeze)
    return model


def build_optimizer(
    chosen: Optimizer, parameters: list[nn.Parameter], epochs: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimizer of a stage, and its schedule over the epochs."""
    optimizer: torch.optim.Optimizer
    if chosen.name == "adamw":
        optimizer = torch.optim.AdamW(parameters, lr=chosen.lr, weight_decay=chosen.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            parameters, lr=chosen.lr, momentum=chosen.momentum, weight_decay=chosen.weight_decay
        )
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)


def sparsity_of(model: nn.Module) -> float:
    """Share of zeros in the effective weights; 0 for dense weights."""
    counts = [layer.counts for layer in model.modules() if isinstance(layer, fk.nn.FrozenLayer)]
    weights = sum(c["pruned"] + c["locked"] + c["free"] for c in counts)
    return 1 - sum(c["kept"] for c in counts) / weights if weights else 0.0


def correct_of(outputs: Tensor, y: Tensor) -> Tensor:
    """How many labels are right; those of other parts never are."""
    return (outputs.argmax(1) == y).sum()


class Trainer:
    """A run: builds everything, or takes it up where the checkpoint left it.

    It trains weights or scores for `settings.epochs`, and then the kept values of a jackpot where they are tuned.

    Args:
        settings: of the run.
        group: this process among all.
        resume: go on from the checkpoint in `settings.out`, from the beginning where there is none yet.
        quiet: no progress bar.

    Raises:
        FileNotFoundError, ValueError: the data, the checkpoint, or what `freeze_` refuses.
        FileExistsError: `settings.out` holds a checkpoint and `resume` is off.
    """

    def __init__(self, settings: Settings, group: processes.Processes, *, resume: bool = False, quiet: bool = False):
        self.settings, self.group, self.quiet = settings, group, quiet or group.rank > 0
        self.out = Path(settings.out)
        saved = self._saved(resume)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        data = load_data(settings, group.device)
        cut = {"rank": group.rank, "world": group.world, "workers": settings.data.workers}
        batch = settings.data.batch or 1
        self.plan = Plan(data.train, batch, accumulate=settings.accumulate, **cut)
        self.plan.check_training()
        self.held_out = {name: Plan(part, batch, **cut) for name, part in data.held_out.items()}
        self.compared: dict[str, float] = {}
        if settings.jackpot and not saved:
            self.model = processes.wrap(build_dense(settings, data).to(group.device), group)
            self._compare("dense")
        self.plain = build_model(settings, data).to(group.device)
        self.model = processes.wrap(self.plain, group)
        self.search = self._search()
        searched = self.search.parameters() if self.search else []
        self.parameters = searched or list(self.plain.parameters())
        self.optimizer, self.scheduler = build_optimizer(settings.optimizer, self.parameters, settings.epochs)
        self.epochs = settings.epochs + (settings.jackpot.tune_epochs if settings.jackpot else 0)
        self.epoch = self.step = 0
        self.running = self._zeros()
        self.rows: list[list[float | int | str]] = []
        self.stop_asked = False
        self.started = time.monotonic()
        if saved:
            self._take_up(saved)
        elif settings.jackpot:
            self._compare("magnitude alone")

    def _search(self) -> fk.EdgePopup | fk.Jackpot | None:
        chosen = self.settings
        if chosen.jackpot is not None:
            return fk.Jackpot(
                self.plain, epochs=chosen.epochs, steps_per_epoch=self.plan.steps,
                restriction="short" if chosen.jackpot.restriction else None,
            )  # fmt: skip
        return None if chosen.freeze is None else fk.EdgePopup(self.plain, refresh_every=chosen.refresh_every)

    def _begin_tuning(self) -> None:
        """The search is over: train the values that it kept."""
        chosen = self.settings.jackpot
        assert chosen is not None
        self.search, self.parameters = None, fk.tune_weights_(self.plain)
        self.model = processes.wrap(self.plain, self.group)  # DistributedDataParallel knows the scores alone
        optimizer = replace(self.settings.optimizer, lr=chosen.tune_lr, weight_decay=0.0)
        self.optimizer, self.scheduler = build_optimizer(optimizer, self.parameters, chosen.tune_epochs)

    def _compare(self, stage: str) -> None:
        """Note the test accuracy with statistics of batch norm that were made anew, from as many images each time."""
        steps = self.plan.train(self.settings.seed, 0)
        fk.recalibrate_(self.model, ((x,) for batches, _ in steps for x, _ in self._moved(batches)), RECALIBRATE)
        self.compared[stage] = self.accuracy("test")

    def _zeros(self) -> Tensor:
        """Sum of losses, right answers and labels of the epoch so far."""
        return torch.zeros(3, dtype=torch.float64, device=self.group.device)

    def _saved(self, resume: bool) -> dict[str, Any] | None:
        path = self.out / CHECKPOINT
        if path.exists() and not resume:
            raise FileExistsError(f"out: {path} is there; --resume goes on with it, or choose another folder")
        return checkpoint.load(path, self.settings) if path.exists() else None

    def _take_up(self, saved: dict[str, Any]) -> None:
        if self.settings.jackpot and not saved["search"]:
            self._begin_tuning()
        processes.load_full_state(self.model, self.optimizer, saved)
        self.scheduler.load_state_dict(saved["scheduler"])
        if self.search:
            self.search.load_state_dict(saved["search"])
        torch.set_rng_state(saved["rng"])
        self.epoch, self.step, self.rows = saved["epoch"], saved["step"], saved["rows"]
        self.compared = saved["compared"]
        if self.group.rank == 0:  # sums of all processes
            self.running = saved["running"].to(self.group.device)
        self.started -= saved["seconds"]
        self._write_log()

    def _save(self) -> None:
        state = processes.full_state(self.model, self.optimizer)
        running = processes.total(self.running, self.group).cpu()
        if self.group.rank:
            return
        state |= {
            "scheduler": self.scheduler.state_dict(),
            "search": self.search.state_dict() if self.search else {},
            "rng": torch.get_rng_state(),
            "epoch": self.epoch,
            "step": self.step,
            "running": running,
            "rows": self.rows,
            "compared": self.compared,
            "seconds": time.monotonic() - self.started,
        }
        checkpoint.save(self.out / CHECKPOINT, self.settings, state)

    def _write_log(self) -> None:
        if self.group.rank:
            return
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *self.rows])
        write_whole(self.out / LOG, text.getvalue())

    def _moved(self, batches: list[Batch]) -> Iterator[Batch]:
        return ((x.to(self.group.device), y.to(self.group.device)) for x, y in batches)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.group.device.type, torch.bfloat16, enabled=self.settings.amp is not None)

    def _train_step(self, batches: list[Batch], labels: int) -> None:
        """One step of the optimizer, and new masks; the loss is the mean over the labels of all processes."""
        self.optimizer.zero_grad()
        for x, y in self._moved(batches):
            with self._autocast():
                outputs = self.model(x)
            loss = F.cross_entropy(outputs.float(), y, reduction="sum", ignore_index=UNLABELLED)
            # gradients are averaged over processes
            (loss * (self.group.world / labels)).backward()
            self.running += torch.stack([loss.detach().double(), correct_of(outputs, y), (y != UNLABELLED).sum()])
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        if self.search:
            self.search.step()

    @torch.no_grad()
    def accuracy(self, name: str) -> float:
        """Share of the labels of a held-out part that the model gets right."""
        self.model.eval()
        found = torch.zeros(2, dtype=torch.int64, device=self.group.device)
        for batches, _ in self.held_out[name].evaluate():
            for x, y in self._moved(batches):
                with self._autocast():
                    outputs = self.model(x)
                found += torch.stack([correct_of(outputs, y), (y != UNLABELLED).sum()])
        self.model.train()
        right, count = processes.total(found, self.group).tolist()
        return right / count

    def _train_epoch(self, bar: tqdm) -> None:
        every = self.settings.checkpoint_every
        self.model.train()
        for batches, labels in self.plan.train(self.settings.seed, self.epoch, self.step):
            self._train_step(batches, labels)
            self.step += 1
            bar.update()
            if not bar.disable and self.step % POSTFIX_EVERY == 0:
                loss, _, count = self.running.tolist()
                bar.set_postfix(loss=f"{loss / count:.3f}", refresh=False)
            if self.stop_asked:
                self._save()
                raise Stopped
            if every and self.step % every == 0 and self.step < self.plan.steps:
                self._save()

    def _end_epoch(self) -> None:
        """Accuracies, a row of the log, and then the checkpoint, which holds the row too."""
        loss, right, count = processes.total(self.running, self.group).tolist()
        lr = float(self.scheduler.get_last_lr()[0])
        held_out = {name: self.accuracy(name) for name in self.held_out}
        self.scheduler.step()
        self.epoch, self.step, self.running = self.epoch + 1, 0, self._zeros()
        steps, sparsity = self.epoch * self.plan.steps, sparsity_of(self.plain)
        accuracies = [right / count, held_out.get("validation", ""), held_out["test"]]
        seconds = round(time.monotonic() - self.started, 3)
        self.rows.append([self.epoch, steps, lr, loss / count, *accuracies, sparsity, seconds])
        self._write_log()
        self._save()

    def run(self) -> Result:
        """Train to the end and write the ticket, or the weights. `Stopped` after an interrupt."""
        self.out.mkdir(parents=True, exist_ok=True)
        steps = self.plan.steps
        done = self.epoch * steps + self.step
        with (
            self._interruptible(),
            tqdm(total=self.epochs * steps, initial=done, unit="step", disable=self.quiet) as bar,
        ):
            while self.epoch < self.epochs:
                if self.epoch == self.settings.epochs and self.search:
                    self._compare("jackpot")
                    self._begin_tuning()
                bar.set_description(f"epoch {self.epoch + 1}/{self.epochs}")
                self._train_epoch(bar)
                self._end_epoch()
        return self._finish()

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first interrupt asks for a checkpoint after the step; with many processes, each would ask at another."""
        if self.group.world > 1:
            yield
            return

        def ask(number: int, frame: object) -> None:
            self.stop_asked = True
            signal.signal(number, before)

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _finish(self) -> Result:
        mask_bytes = 0
        if self.settings.jackpot:
            self._end_jackpot(self.settings.jackpot.values)
        if self.settings.freeze is None:
            path = self.out / WEIGHTS
            state = {name: tensor.contiguous() for name, tensor in processes.full_model_state(self.plain).items()}
            if self.group.rank == 0:
                write_whole(path, to_safetensors(state))
        else:
            path = self.out / TICKET
            fk.save_ticket(self.plain, path)  # of each process, which may have to gather; all write the same bytes
            layers = [layer for layer in self.plain.modules() if isinstance(layer, fk.nn.FrozenLayer)]
            mask_bytes = sum(layer.packed_supermask().numel() for layer in layers)
        processes.wait(self.group)
        accuracy = self.compared.get("ticket", self.rows[-1][COLUMNS.index("test_accuracy")])
        return Result(path, path.stat().st_size, mask_bytes, float(accuracy), self.compared)

    def _end_jackpot(self, values: str) -> None:
        self._compare("jackpot" if self.search else "tuned")
        if self.group.parallel != "fsdp":  # which holds the scores: save_ticket packs float32 then
            fk.finalize_(self.plain, values)
            self.model = self.plain
        self.compared["ticket"] = self.accuracy("test")
