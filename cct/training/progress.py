"""What a run says while it goes on: a progress bar on a terminal, plain lines everywhere."""

import contextlib
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from cct.disk import discard_output

from .metrics import percent


class _Output(Console):
    """stdout; where its reader goes away, as `head` does, what comes after goes nowhere."""

    def __init__(self, quiet=False):
        super().__init__(quiet=quiet, highlight=False)

    def on_broken_pipe(self):
        """Go on without output; that of rich would end the program in the middle of its work."""
        self.quiet = True
        discard_output()
        with contextlib.suppress(OSError):
            print("nobody reads the output any more; going on without it", file=sys.stderr, flush=True)


class Log:
    """Lines for the user; with a bar for the whole run below them when the console is a terminal.

    console: stdout if not given, or nothing where `quiet`.
    """

    def __init__(self, console=None, quiet=False):
        self.console = console or _Output(quiet)
        self._bar = self._task = None

    def line(self, text):
        """One line, as it is. OSError where it cannot be written, such as on a full disk."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start(self, done, total, batch_size):
        """Begin the bar: `done` of `total` optimizer steps are behind us."""
        self._rate = _Rate(batch_size)
        if not self.console.is_terminal:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self._bar = Progress(*columns, console=self.console, transient=True)
        self._task = self._bar.add_task("starting", total=total, completed=done, rate="")
        self._bar.start()

    def step(self, epoch, epochs):
        """One optimizer step is done."""
        self._rate.step()
        if self._bar:
            rate = f"{self._rate.value:,.0f} img/s"
            self._bar.update(self._task, advance=1, description=f"epoch {epoch}/{epochs}", rate=rate)

    def epoch(self, row, epochs, split, best, reported=None):
        """The line of a finished epoch; accuracies that were not measured after it are left out.

        reported: what to call the split, where not by its name.
        """
        width = len(str(epochs))
        names = {"train": "train", split: reported or split, "ema": "ema"}
        values = {names[key]: row.get(f"{key}_top1") for key in names}
        accuracies = "".join(f"  {name} {percent(value):>8}" for name, value in values.items() if value is not None)
        self.line(
            f"epoch {row['epoch']:>{width}}/{epochs}  lr {row['lr']:.2e}  loss {row['train_loss']:.4f}{accuracies}  "
            f"{row['images_per_second']:>7,.0f} img/s  {row['seconds']:.1f} s{'  best' if best else ''}"
        )

    def stop(self):
        """End the bar."""
        if self._bar:
            self._bar.stop()
            self._bar = None


class _Rate:
    """Images a second, smoothed over about the last ten steps."""

    def __init__(self, batch_size):
        self.batch_size, self.seconds, self.last = batch_size, None, time.perf_counter()

    def step(self):
        now = time.perf_counter()
        taken, self.last = now - self.last, now
        self.seconds = taken if self.seconds is None else 0.9 * self.seconds + 0.1 * taken

    @property
    def value(self):
        return self.batch_size / max(self.seconds, 1e-9)
