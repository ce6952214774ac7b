"""One run: training steps, evaluation, saving, and everything that can end it."""

import dataclasses
import math
import time
from pathlib import Path

import torch

from cct.data import batches
from cct.models.checkpoints import load_checkpoint, save_checkpoint
from cct.reports.curves import draw_curve

from . import metrics, run_folder
from .config import ConfigError
from .evaluate import autocast, evaluate
from .interrupt import EXIT_CODES, Interrupt
from .losses import cross_entropy
from .metrics import best_row, percent, summary
from .optim import make_ema, make_optimizer, set_learning_rate
from .run_folder import RunError, saving
from .schedules import learning_rate, total_epochs
from .setup import describe

CURVE_SECONDS = 60.0  # between two drawings of curve.png during a run
LOSSES_HELD = 16  # losses on a GPU are looked at in groups of this many: a look waits for the device
POSITION = ("epoch", "step", "seen", "seconds", "loss_sum", "correct")  # of a run, beside weights and rows


@dataclasses.dataclass
class Result:
    """What a run gave: its folder, a row for each finished epoch, the last sentence; exit_code 130 or 143 after a signal."""

    folder: Path
    rows: list
    sentence: str
    exit_code: int = 0


class Run:
    """A run: model, optimizer, position, rows of metrics. `go` trains to the end or to a signal, and says how it goes."""

    def __init__(self, setup, folder, log):
        self.setup, self.config, self.data, self.device = setup, setup.config, setup.data, setup.device
        self.folder, self.log, self.model = folder, log, setup.model
        self.optimizer = make_optimizer(self.model, self.config)
        self.ema = make_ema(self.model, self.config.model_ema_decay) if self.config.model_ema else None
        self.train_split = self.data.train.to(self.device)
        self.split = "test" if self.data.val is None else "val"
        self.held_out = getattr(self.data, self.split).to(self.device)
        self.epochs = total_epochs(self.config)
        self.steps = batches.num_batches(len(self.data.train), self.config.batch_size)
        self.epoch, self.rows = 0, []
        self._begin_epoch()
        self.saved_at = self.drawn_at = time.monotonic()

    def _begin_epoch(self):
        self.step, self.seen, self.seconds, self.losses = 0, 0, 0.0, []
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.correct = torch.zeros((), dtype=torch.int64, device=self.device)

    def go(self):
        """Train to the end or to a signal; draw the curve and say how it went."""
        for line in describe(self.setup, self.folder, self.steps, self.epochs):
            self.log.line(line)
        if self.epoch or self.step:
            self.log.line(f"resumed  after epoch {self.epoch}, step {self.step} of {self.steps}")
        with Interrupt() as interrupt:
            self.log.start(self.epoch * self.steps + self.step, self.epochs * self.steps, self.config.batch_size)
            try:
                while self.epoch < self.epochs and interrupt.signal is None:
                    self._train_epoch(interrupt)
            finally:
                self.log.stop()
        self._draw()
        return self._finished() if self.epoch == self.epochs else self._interrupted(interrupt.signal)

    def _train_epoch(self, interrupt):
        config = self.config
        stream = batches.epoch(
            self.train_split, batch_size=config.batch_size, seed=config.seed, epoch=self.epoch, augment=self.setup.augment,
            mean=self.data.mean, std=self.data.std, device=self.device, start=self.step,
        )  # fmt: skip
        self.model.train()
        began = time.perf_counter() - self.seconds
        for images, labels in stream:
            self._train_step(images, labels)
            self.seconds = time.perf_counter() - began
            self.log.step(self.epoch + 1, self.epochs)
            if interrupt.signal is not None or time.monotonic() - self.saved_at >= config.save_seconds:
                self.save()
            if interrupt.signal is not None:
                return
        self._end_epoch()

    def _train_step(self, images, labels):
        config = self.config
        set_learning_rate(self.optimizer, learning_rate(config, self.epoch + self.step / self.steps))
        with autocast(self.device, config.amp):
            logits = self.model(images)
        loss = cross_entropy(logits, labels, config.smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._note(loss.detach(), logits.detach(), labels)
        if config.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.step += 1

    def _note(self, loss, logits, labels):
        """Count the step; a loss that is not finite ends the run before it reaches the weights (on a GPU: before a file)."""
        self.losses.append((self.step, loss))
        if self.device.type == "cpu" or len(self.losses) >= LOSSES_HELD:
            self._check_losses()
        self.loss_sum += loss.double() * len(labels)
        self.correct += (logits.argmax(1) == labels).sum()
        self.seen += len(labels)

    def _check_losses(self):
        held, self.losses = self.losses, []
        values = torch.stack([loss for _, loss in held]).tolist() if held else []
        for (step, _), value in zip(held, values, strict=True):
            if not math.isfinite(value):
                self._diverged(f"the loss is {value}", step)

    def _diverged(self, what, step):
        lr = learning_rate(self.config, self.epoch + step / self.steps)
        raise RunError(
            f"{what} at step {step + 1} of {self.steps} in epoch {self.epoch + 1}, learning rate {lr:.2e}. "
            f"Try --lr {self.config.lr / 3:.1e}, more --warmup-epochs or --clip-grad 1. "
            f"Nothing was overwritten: what {self.folder} holds is from before."
        )

    def _end_epoch(self):
        row = self._row()
        self._check_losses()
        if not all(math.isfinite(row[key]) for key in row if key.endswith("_loss")):
            self._diverged(f"the {self.split} loss is not finite", self.steps - 1)
        self.rows.append(row)
        best = best_row(self.rows, self.split) is row
        with saving(self.folder):
            if best:
                self._save_weights("best", self.model, row)
            if self.ema is not None:
                self._save_weights("ema", self.ema.module, row)
            self._save_weights("last", self.model, row)
        self.epoch += 1
        self._begin_epoch()
        self.save()
        self.write_metrics()
        self.log.epoch(row, self.epochs, self.split, best)
        if time.monotonic() - self.drawn_at >= CURVE_SECONDS:
            self._draw()

    def _row(self):
        began = time.perf_counter()
        row = {
            "epoch": self.epoch + 1,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": self.loss_sum.item() / self.seen,
            "train_top1": self.correct.item() / self.seen,
        }
        for name, model in ((self.split, self.model), ("ema", self.ema)):
            if model is not None:
                result = self.evaluate(model)
                row |= {f"{name}_{key}": result[key] for key in ("loss", "top1", "top5")}
        seconds = self.seconds + time.perf_counter() - began
        return {**row, "images_per_second": self.seen / self.seconds, "seconds": seconds}

    def evaluate(self, model, split=None):
        """`evaluate` on the held-out split, or another one, as this run is set up."""
        split = self.held_out if split is None else split
        return evaluate(model, split, mean=self.data.mean, std=self.data.std, device=self.device, amp=self.config.amp)

    # Saving

    def save(self):
        """Write the resume state; RunError instead when the weights are not finite or the disk is full."""
        self._check_losses()
        if not all(torch.isfinite(p).all() for p in self.model.parameters()):
            self._diverged("a weight is not finite", max(self.step - 1, 0))
        with saving(self.folder):
            run_folder.save_state(self.folder, self._state())
        self.saved_at = time.monotonic()

    def write_metrics(self):
        with saving(self.folder):
            metrics.write_metrics(self.folder, self.rows)

    def _state(self):
        return {
            "config": dataclasses.asdict(self.config),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "rows": self.rows,
            "images": len(self.data.train),
            "classes": list(self.data.classes),
            **{name: getattr(self, name) for name in POSITION},
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load(self, state):
        """Become the run whose `_state` this is; ConfigError when the data are not those it began with."""
        if state["images"] != len(self.data.train) or state["classes"] != list(self.data.classes):
            then = f"{state['images']:,} training images of {len(state['classes'])} classes"
            now = f"{len(self.data.train):,} of {self.data.num_classes}, or other names"
            raise ConfigError(f"--resume {self.folder}: it began with {then}, but {self.data.source} has {now}; see --data-dir")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.rows = state["rows"]
        for name in POSITION:
            value = state[name]
            setattr(self, name, value.to(self.device) if isinstance(value, torch.Tensor) else value)
        torch.set_rng_state(state["rng"])
        if state["rng_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"], self.device)

    def _save_weights(self, name, model, row):
        config = {
            "model": self.model.config,
            "preprocessing": self.data.preprocessing,
            "classes": list(self.data.classes),
            "metrics": row,
            "data": {"name": self.config.data, "source": self.data.source, "split": self.data.split},
        }
        save_checkpoint(self.folder / f"{name}.safetensors", model.state_dict(), config)

    # Ending

    def _draw(self):
        if self.rows:
            title = f"{self.config.model} on {self.data.name}"
            note = f"train: with label smoothing {self.config.smoothing:g}" if self.config.smoothing else ""
            with saving(self.folder):
                draw_curve(self.rows, self.folder / "curve.png", title, note)
        self.drawn_at = time.monotonic()

    def _interrupted(self, signal):
        sentence = (
            f"stopped by {signal.name} in epoch {self.epoch + 1} after step {self.step} of {self.steps}; everything is saved. "
            f"Go on with: cct train --resume {self.folder}"
        )
        self.log.line(sentence)
        return Result(self.folder, self.rows, sentence, EXIT_CODES[signal])

    def _finished(self):
        sentence = summary(self.rows, self.config.data, self.split)
        if self.split == "val":
            weights, _ = load_checkpoint(self.folder / "best.safetensors")
            self.model.load_state_dict(weights)
            sentence += f"; its test top-1 {percent(self.evaluate(self.model, self.data.test)['top1'])}"
        self.log.line(sentence)
        self.log.line(f"run folder: {self.folder}")
        return Result(self.folder, self.rows, sentence)
