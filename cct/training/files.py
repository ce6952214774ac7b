"""What a run writes into its folder while it goes on."""

from cct.models.checkpoints import save_checkpoint

from . import run_folder
from .metrics import write_metrics


class Files:
    """The files of the run in `folder`. The first worker writes them; where that fails, all workers end with a RunError."""

    def __init__(self, folder, setup, workers):
        self.folder, self.setup, self.workers = folder, setup, workers

    def state(self, state):
        """What the run can be resumed from."""
        self._write(lambda: run_folder.save_state(self.folder, state))

    def metrics(self, rows):
        """metrics.csv and metrics.jsonl."""
        self._write(lambda: write_metrics(self.folder, rows))

    def weights(self, models, row):
        """NAME.safetensors for each name and model, with all that it takes to use them, and the metrics in `row`."""
        config, data = self.setup.config, self.setup.data
        described = {
            "model": self.setup.model.config,
            "preprocessing": data.preprocessing,
            "classes": list(data.classes),
            "metrics": row,
            "data": {"name": config.data, "source": data.source, "split": data.split},
        }

        def write():
            for name, model in models.items():
                save_checkpoint(self.folder / f"{name}.safetensors", model.state_dict(), described)

        self._write(write)

    def curve(self, rows):
        """curve.png, once there is an epoch to draw."""
        config, augment = self.setup.config, self.setup.augment
        notes = [f"label smoothing {config.smoothing:g}"] if config.smoothing else []
        notes += ["mixed images: right is the class of the larger share"] if augment.mixes else []
        note = f"train: with {', '.join(notes)}" if notes else ""
        if rows:
            from cct.reports.curves import draw_curve  # Matplotlib takes most of a second, which training need not wait for

            title = f"{config.model} on {self.setup.data.name}"
            self._write(lambda: draw_curve(rows, self.folder / "curve.png", title, note))

    def _write(self, write):
        with self.workers.together():
            if self.workers.first:
                with run_folder.saving(self.folder):
                    write()
