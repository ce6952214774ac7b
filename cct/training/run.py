"""One run: training steps, evaluation, saving, and everything that can end it."""

import dataclasses
import math
import time
from pathlib import Path
from signal import Signals

import torch

from cct.data import DataError, Split, batches
from cct.memory import who_is_full
from cct.models.checkpoints import load_checkpoint

from . import metrics, sessions, sizes
from .config import ConfigError
from .distributed import Workers
from .elapsed import process_seconds
from .evaluate import evaluate
from .files import Files
from .interrupt import EXIT_CODES, Interrupt
from .metrics import best_row, percent, reached, summary
from .run_folder import RunError, saving
from .schedules import learning_rate, total_epochs
from .setup import describe
from .step import Step

CURVE_SECONDS = 60.0  # between two drawings of curve.png during a run
LOSSES_HELD = 16  # losses on a GPU are looked at in groups of this many: a look waits for the device
ECHO_SECONDS = 3.0  # in which torchrun passes on a signal that its processes have had already
POSITION = ("epoch", "step", "seen", "seconds", "sums")  # of a run, beside weights and rows


@dataclasses.dataclass
class Result:
    """What a run gave: its folder, a row for each finished epoch, the last sentence; exit_code 130 or 143 after a signal."""

    folder: Path
    rows: list
    sentence: str
    exit_code: int = 0


class Run:
    """A run: `Step`, position, rows of metrics. `go` trains to the end or to a signal, and says how it goes.

    With several workers all of them go through the same steps; the first one writes the folder and the log.
    """

    def __init__(self, setup, folder, log, workers=None):
        self.setup, self.config, self.data, self.device = setup, setup.config, setup.data, setup.device
        self.folder, self.log, self.model, self.workers = folder, log, setup.model, workers or Workers()
        self.files = Files(folder, setup, self.workers)
        self.stepper = Step(self.model, setup.objective, self.config, self.device, self.workers)
        self.ema = self.stepper.ema
        self.side, self.train_split, self.augment = None, self._near(self.data.train), setup.augment
        self.split = "test" if self.data.val is None else "val"
        self.reported = self.data.tested_on if self.split == "test" else self.split  # a folder may have no test/
        self.held_out = self._near(getattr(self.data, self.split))
        self.epochs = total_epochs(self.config)
        self.steps = batches.num_batches(len(self.data.train), self.config.batch_size, self.config.drop_last)
        self.epoch, self.rows, self.seconds_before, self.changed = 0, [], 0.0, []
        self.tested = None  # the test accuracy of the weights that were best on val, once it is known
        self.session, self.sessions_before = sessions.begin(self.device, self.workers), []
        self._begin_epoch()
        self.saved_at = self.drawn_at = time.monotonic()

    def _begin_epoch(self):
        self.step, self.seen, self.seconds, self.losses = 0, 0, 0.0, []
        self.sums = torch.zeros(len(self.setup.objective.names), dtype=torch.float64, device=self.device)

    @property
    def seconds_from_start(self):
        """Wall clock from process start, of all the processes one after the other that this run took."""
        return self.seconds_before + process_seconds()

    def go(self):
        """Train to the end, to the target accuracy or to a signal; draw the curve and say how it went."""
        for line in describe(self.setup, self.folder, self.steps, self.epochs, self.workers):
            self.say(line)
        if self.epoch or self.step:
            self.say(f"resumed  after epoch {self.epoch}, step {self.step} of {self.steps}")
        for line in self.changed:
            self.say(line)
        advice = f"Go on with: cct train --resume {self.folder} (the last save is whole)"
        with self.workers.watch(advice), Interrupt(ECHO_SECONDS if self.workers.count > 1 else 0.0) as interrupt:
            signal = None
            self.log.start(self.epoch * self.steps + self.step, self.epochs * self.steps, self.config.batch_size)
            try:
                while self.epoch < self.epochs and not self._reached() and signal is None:
                    signal = self._train_epoch(interrupt)
            except DataError as error:  # a picture that does not decode
                raise DataError(f"{error}. {advice}") from error
            except (RuntimeError, MemoryError) as error:
                if (full := who_is_full(error)) is None:
                    raise
                raise RunError(f"{full} has no memory left. {self._less_memory(advice)}") from error
            finally:
                self.log.stop()
            self.files.curve(self.rows)
            return self._finished() if signal is None else self._interrupted(signal)

    def say(self, line):
        """A line for the user; RunError where the log cannot be written."""
        self._log(lambda: self.log.line(line))

    def _log(self, write):
        with self.workers.together(), saving(self.folder, "write the log"):
            write()

    def _train_epoch(self, interrupt):
        """Train to the end of the epoch, or to a signal, which is returned."""
        config = self.config
        self._resize()
        stream = batches.epoch(
            self.train_split, batch_size=config.batch_size, seed=config.seed, epoch=self.epoch, augment=self.augment,
            mean=self.data.mean, std=self.data.std, device=self.device, num_classes=self.data.num_classes,
            drop_last=config.drop_last, start=self.step, pieces=self.stepper.pieces, own=self.stepper.own,
            carry=self.stepper.carry,
        )  # fmt: skip
        self.model.train()
        began = time.perf_counter() - self.seconds
        for images, targets in stream:
            self._train_step(images, targets)
            self.seconds = time.perf_counter() - began
            self.log.step(self.epoch + 1, self.epochs)
            late = time.monotonic() - self.saved_at >= config.save_seconds
            signal, late = self.workers.greatest(interrupt.signal or 0, late)
            if signal or late:
                self.save()
            if signal:
                return Signals(signal)
        self._check_losses()  # waits for the device
        self.seconds = time.perf_counter() - began
        self._end_epoch()
        return None

    def _resize(self):
        """Training images, crops and graphs of the size that `progressive` wants in this epoch."""
        side = sizes.side_of(self.config, self.epoch)
        if side == self.side:
            return
        split, self.augment = self.data.train, self.setup.augment
        if side is not None:
            split = split.resized((side, side))
            padding = round(self.augment.crop_padding * side / self.config.img_size)
            self.augment = dataclasses.replace(self.augment, crop_padding=padding)
        self.side, self.train_split = side, self._near(split)
        self.stepper.forget_graphs()

    def _near(self, split):
        """The split on our device; images that would take half of a GPU's free memory stay where they are."""
        if self.device.type == "cuda" and isinstance(split, Split):
            free, _ = torch.cuda.mem_get_info(self.device)
            if split.images.nbytes > free / 2:
                return split
        return split.to(self.device)

    def _train_step(self, images, targets):
        n = min(self.config.batch_size, len(self.data.train) - self.step * self.config.batch_size)
        means = self.stepper.gradients(images, targets, n, self.epoch, self.step)
        self._note(means, n)
        self.stepper.update(self._learning_rate(self.step))
        self.step += 1

    def _learning_rate(self, step):
        return learning_rate(self.config, self.epoch + step / self.steps)

    def _note(self, means, n):
        """Count the step; a loss that is not finite ends the run before it reaches the weights (on a GPU: before a file)."""
        self.losses.append((self.step, means[0]))
        if self.device.type == "cpu" or len(self.losses) >= LOSSES_HELD:
            self._check_losses()
        self.sums += means * n
        self.seen += n

    def _check_losses(self):
        held, self.losses = self.losses, []
        values = torch.stack([loss for _, loss in held]).tolist() if held else []
        for (step, _), value in zip(held, values, strict=True):
            if not math.isfinite(value):
                self._diverged(f"the loss is {value}", step)

    def _diverged(self, what, step):
        with self.workers.together():
            raise RunError(
                f"{what} at step {step + 1} of {self.steps} in epoch {self.epoch + 1}, "
                f"learning rate {self._learning_rate(step):.2e}. "
                f"Try --lr {self.config.lr / 3:.1e}, more --warmup-epochs or --clip-grad 1. "
                f"Nothing was overwritten: what {self.folder} holds is from before."
            )

    def _end_epoch(self):
        due = self.epoch + 1 == self.epochs or (self.epoch + 1) % self.config.eval_every == 0
        row = self._row(due)
        if not all(math.isfinite(row[key]) for key in row if key.endswith("_loss") and row[key] is not None):
            self._diverged(f"the {self.split} loss is not finite", self.steps - 1)
        self.rows.append(row)
        best = best_row(self.rows, self.split) is row
        if due:
            self.files.weights(self._models(best), row)
        self.epoch += 1
        self._begin_epoch()
        if due:
            self.save()
            self.files.metrics(self.rows)
        self._log(lambda: self.log.epoch(row, self.epochs, self.split, best, self.reported))
        (late,) = self.workers.greatest(time.monotonic() - self.drawn_at >= CURVE_SECONDS)
        if late:
            self.files.curve(self.rows)
            self.drawn_at = time.monotonic()

    def _models(self, best):
        """The models to write weights of, under the names of their files."""
        models = {"best": self.model} if best else {}
        return {**models, "last": self.model, **({"ema": self.ema.module} if self.ema is not None else {})}

    def _row(self, due):
        """The metrics of the epoch; those of the evaluation are None unless it is `due`."""
        began = time.perf_counter()
        row = {"epoch": self.epoch + 1, "lr": self._learning_rate(self.steps - 1)}
        means = (self.sums / self.seen).tolist()
        row |= {f"train_{name}": mean for name, mean in zip(self.setup.objective.names, means, strict=True)}
        for name, model in ((self.split, self.model), ("ema", self.ema)):
            if model is not None:
                result = self.evaluate(model) if due else {}
                row |= {f"{name}_{key}": result.get(key) for key in ("loss", "top1", "top5")}
        seconds = self.seconds + time.perf_counter() - began
        rate = self.seen / self.seconds
        return {**row, "images_per_second": rate, "seconds": seconds, "seconds_from_start": self.seconds_from_start}

    def _reached(self):
        """What `metrics.reached` says of the last evaluation."""
        rows = metrics.evaluated(self.rows, self.split)
        return reached(rows[-1], self.split, self.config.target_top1) if rows else None

    def evaluate(self, model, split=None):
        """`evaluate` on the held-out split, or another one, as this run is set up."""
        split = self.held_out if split is None else split
        piece = self.config.batch_size // (self.workers.count * self.config.accumulate_steps)
        return evaluate(
            model, split, mean=self.data.mean, std=self.data.std, device=self.device, amp=self.config.amp, tta=self.config.tta,
            workers=self.workers, batch_size=min(256, 2 * piece),  # without gradients they need less than a step of training
        )  # fmt: skip

    # Saving

    def save(self):
        """Write the resume state; RunError instead when the weights are not finite or the disk is full."""
        self._check_losses()
        if not all(torch.isfinite(p).all() for p in self.model.parameters()):
            self._diverged("a weight is not finite", max(self.step - 1, 0))
        self.files.state(self._state())
        self.saved_at = time.monotonic()

    def _state(self):
        return {
            "config": dataclasses.asdict(self.config),
            **self.stepper.state_dict(),
            "rows": self.rows,
            "images": len(self.data.train),
            "split": self.data.split,
            "tested": self.tested,
            "classes": list(self.data.classes),
            "workers": self.workers.count,
            "seconds_from_start": self.seconds_from_start,
            "sessions": [*self.sessions_before, self.session | {"seconds": round(process_seconds()), "epochs": len(self.rows)}],
            **{name: getattr(self, name) for name in POSITION},
        }

    def load(self, state):
        """Become the run whose `_state` this is; ConfigError when the data are not those it began with."""
        if state["images"] != len(self.data.train) or state["classes"] != list(self.data.classes):
            then = f"{state['images']:,} training images of {len(state['classes'])} classes"
            now = f"{len(self.data.train):,} of {self.data.num_classes}, or other names"
            raise ConfigError(f"--resume {self.folder}: it began with {then}, but {self.data.source} has {now}; see --data-dir")
        self.stepper.load_state_dict(state)
        self.rows, self.seconds_before = state["rows"], state["seconds_from_start"]
        self.sessions_before, self.tested = sessions.earlier(state), state.get("tested")
        self.changed = sessions.changes(self.sessions_before[-1], self.session)
        if (before := state["config"]["data_dir"]) != self.config.data_dir:
            self.changed.append(f"changed  data_dir: {before} -> {self.config.data_dir}")
        if any(line.startswith(("changed  machine", "changed  versions")) for line in self.changed):
            self.changed.append("         from here on the same up to rounding, no longer bit for bit")
        self.changed += sessions.crowded(self.device, self.workers)
        for name in POSITION:
            value = state[name]
            setattr(self, name, value.to(self.device) if isinstance(value, torch.Tensor) else value)

    # Ending

    def _interrupted(self, signal):
        sentence = (
            f"stopped by {signal.name} in epoch {self.epoch + 1} after step {self.step} of {self.steps}; everything is saved. "
            f"Go on with: cct train --resume {self.folder}"
        )
        self.say(sentence)
        return Result(self.folder, self.rows, sentence, EXIT_CODES[signal])

    def _less_memory(self, advice):
        """How to go on with half the images at a time, where a batch can be cut once more."""
        pieces = 2 * self.config.accumulate_steps
        if pieces * self.workers.count > self.config.batch_size:
            return advice
        command = f"cct train --resume {self.folder} --accumulate-steps {pieces}"
        return f"Go on with less of it for a step: {command} (the last save is whole)"

    def _test_best(self):
        """Find and keep the test accuracy of the weights that were best on val."""
        last = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        best = load_checkpoint(self.folder / "best.safetensors")[0] if self.workers.first else None
        self.model.load_state_dict(self.workers.share(best))
        self.tested = self.evaluate(self.model, self.data.test)["top1"]
        self.model.load_state_dict(last)
        self.save()

    def _finished(self):
        sentence = summary(self.rows, self.config.data, self.split, self.config.target_top1, self.reported)
        if self.split == "val":
            if self.tested is None:
                self._test_best()
            sentence += f"; its test top-1 {percent(self.tested)}"
        sentence += "; each image evaluated with its mirror image" if self.config.tta == "flip" else ""
        self.say(sentence)
        self.say(f"run folder: {self.folder}")
        return Result(self.folder, self.rows, sentence)
