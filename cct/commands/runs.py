"""The runs behind `cct reproduce`: each is a `cct train` in a process of its own, in a folder named by recipe and seed.

A process for each run keeps threads, memory and crashes apart, and the command that is recorded is the one that ran.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from cct import recipes
from cct.reports.results import read_json, write_json
from cct.training import run_folder, sessions, settings
from cct.training.config import ConfigError, read_yaml, resolve
from cct.training.interrupt import EXIT_CODES, Interrupt
from cct.training.metrics import finished
from cct.training.parent import PARENT
from cct.training.progress import Log
from cct.training.schedules import total_epochs
from cct.training.setup import check

FLAGS_OF_MACHINE = ("data_dir", "device", "threads")  # flags that may differ between the parts of a run


@dataclass
class Job:
    """One run: `folder` RUNS/VARIANT/seed-N, `record` (kept beside it as seed-N.json), the words of `cct train`."""

    recipe: str
    folder: Path
    record: dict
    words: list
    machine_words: list
    sizes: tuple  # other image sizes to evaluate the last weights at
    begun: dict = field(default_factory=dict)  # the settings that the parts so far had, where they are known

    @property
    def command(self):
        return self.record["command"]

    @property
    def record_path(self):
        return self.folder.with_suffix(".json")

    @property
    def name(self):
        """What messages call it."""
        return f"{self.recipe}, seed {self.record['seed']}"

    @property
    def missing(self):
        """The image sizes at which it is not evaluated yet."""
        return [size for size in self.sizes if str(size) not in self.record["at"]]

    def state(self):
        """'done', 'epoch 12 of 310' or 'not begun'."""
        if self.record["finished"]:
            return "done"
        rows = self.folder / "metrics.csv"
        epochs = max(len(rows.read_text(encoding="utf-8").splitlines()) - 1, 0) if rows.is_file() else 0
        begun = run_folder.has_state(self.folder)
        return f"epoch {epochs} of {self.record['planned']}" if begun else "not begun"

    def save(self):
        """Write the record; RunError when the disk is full."""
        with run_folder.saving(self.folder.parent):
            write_json(self.record_path, self.record)

    def argv(self):
        """The command line that begins the run or goes on with it."""
        start = [sys.executable, "-m", "cct", "train"]
        if run_folder.has_state(self.folder):
            return [*start, "--resume", str(self.folder), *self.machine_words]
        return [*start, "-c", str(recipes.path(self.recipe)), *self.words, "--output", str(self.folder), *self.machine_words]


class Runs:
    """The jobs of one `cct reproduce`."""

    def __init__(self, args, changes):
        self.root, self.changes, self.log = Path(args.runs), changes, Log()
        self.deadline = float("inf") if args.budget is None else time.monotonic() + 60 * args.budget
        given = {name: getattr(args, name) for name in FLAGS_OF_MACHINE if getattr(args, name) is not None}
        self.machine_words = [word for name, value in given.items() for word in settings.flag(name, value)]

    def job(self, recipe, n, sizes=()):
        """The run of a recipe with its n-th seed, counted from 0; `sizes` of images at which to evaluate it in the end."""
        config = resolve(self.changes, recipes.path(recipe))
        check(config)
        seed = config.seed + n
        changes = [f"{name}={settings.text(value)}" for name, value in self.changes.items()]
        folder = self.root / "-".join([recipe, *changes]).replace("/", "_") / f"seed-{seed}"
        words = ["--seed", str(seed), *(word for name, value in self.changes.items() for word in settings.flag(name, value))]
        command = shlex.join(["cct", "train", "-c", recipe, *words])
        record = {"recipe": recipe, "changes": " ".join(changes), "seed": seed, "command": command}
        record |= {"planned": total_epochs(config), "target": config.target_top1, "finished": False, "sessions": [], "at": {}}
        record |= {"settings": settings.of(config)}
        job = Job(recipe, folder, record, words, self.machine_words, tuple(sizes))
        if job.record_path.is_file():
            kept = read_json(job.record_path)
            if run_folder.has_state(folder) or (kept.get("finished") and folder.is_dir()):  # else it begins anew
                record |= {key: kept[key] for key in ("finished", "sessions", "at", "data_split", "tested") if key in kept}
                job.begun = kept.get("settings", {})
        return job

    def go(self, jobs, publish):
        """Run the jobs that are not finished, in order, until the budget or a signal; `publish(job)` after each part of one.

        Returns the exit code. A run that fails does not keep the others from running.
        """
        code = 0
        with Interrupt() as interrupt:
            for job in jobs:
                if difference := self.difference(job):
                    print(difference, file=sys.stderr)
                    code = max(code, 2)
                    continue
                if not job.record["finished"]:
                    if time.monotonic() >= self.deadline:
                        break
                    code = max(code, self._run(job, interrupt))
                if job.record["finished"] and interrupt.signal is None:
                    code = max(code, self._evaluate(job, interrupt))
                publish(job)
                if interrupt.signal is not None:
                    return EXIT_CODES[interrupt.signal]
        if time.monotonic() >= self.deadline and not all(job.record["finished"] and not job.missing for job in jobs):
            self.log.line("stopped at the budget; the same command goes on")
        return code

    def _run(self, job, interrupt):
        """One part of a run: to its end, to the budget or to a signal; 1 when it failed, 2 when it is held, else 0."""
        if held := self._make_place(job):
            print(f"{job.name}: {held}", file=sys.stderr)
            return 2
        argv, file = job.argv(), str(recipes.path(job.recipe))
        self.log.line(shlex.join(["cct", *(job.recipe if word == file else word for word in argv[3:])]))
        process, stopped = self._wait(argv, interrupt)
        told, whole = _told(job) if run_folder.has_state(job.folder) else ({}, False)
        job.record |= told
        job.record["finished"] = process.returncode == 0 and whole
        job.save()
        if process.returncode and not stopped:
            print(f"{job.name}: failed with exit code {process.returncode}, see above", file=sys.stderr)
        elif process.returncode == 0 and not whole:
            print(f"{job.name}: ended before its last epoch; the same command goes on", file=sys.stderr)
        return 0 if stopped or job.record["finished"] else 1

    def _evaluate(self, job, interrupt):
        """Fill in the accuracies at other image sizes that are missing, until the budget or a signal; 1 when one could not be
        had, else 0."""
        config = read_yaml(job.folder / "config.yaml") if job.missing else {}
        flags = [word for name in ("data_dir", "amp") if config.get(name) for word in settings.flag(name, config[name])]
        for size in job.missing:
            if time.monotonic() >= self.deadline:
                break
            words = [str(job.folder / "last.safetensors"), "--img-size", str(size), "--json", *flags, *self.machine_words]
            process, stopped = self._wait([sys.executable, "-m", "cct", "eval", *words], interrupt, stdout=subprocess.PIPE)
            with process.stdout:
                text = process.stdout.read()
            if process.returncode:
                return int(not stopped)
            job.record["at"][str(size)] = 100 * json.loads(text)["top1"]
            job.save()
            self.log.line(f"{job.name}: at {size} pixels top-1 {job.record['at'][str(size)]:.2f} %")
        return 0

    def _wait(self, argv, interrupt, **options):
        """(the process, when it has ended; whether we stopped it).

        A session of its own keeps Ctrl-C of the terminal from reaching it twice; it ends when we are gone, however that was.
        """
        environment = {**os.environ, PARENT: str(os.getpid())}
        process = subprocess.Popen(argv, start_new_session=True, env=environment, **options)
        interrupt.child, stopped = process, False
        try:
            while True:
                try:
                    process.wait(timeout=max(0.05, min(0.5, self.deadline - time.monotonic())))
                    return process, stopped
                except subprocess.TimeoutExpired:
                    if not stopped and (interrupt.signal is not None or time.monotonic() >= self.deadline):
                        process.terminate()
                        stopped = True
        except BaseException:  # a second signal
            process.kill()
            raise
        finally:
            interrupt.child = None

    def difference(self, job):
        """Why the run that was begun is not that of the recipe: it says something else now. None when it is."""
        then = job.begun
        try:
            known = job.record["finished"] and then  # no need to read the state of each finished run
            if not known and run_folder.has_state(job.folder):
                config = run_folder.load_state(job.folder)[0]["config"]
                then = then | {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}
        except ConfigError:  # `cct train` says what is damaged
            return None
        now = job.record["settings"]
        for name, value in settings.different(then, now, settings.FILLED_IN).items():
            return (
                f"{job.folder}: was begun with {name} {value}, but {job.recipe} says {now[name]}; choose another --runs, or "
                "remove this folder"
            )
        return None

    def _make_place(self, job):
        """The folder above the run; away with what a run leaves that was stopped before its first save.

        Returns None, or who holds the folder.
        """
        try:
            job.folder.parent.mkdir(parents=True, exist_ok=True)
            if job.folder.is_dir() and run_folder.is_untrained(job.folder):
                with run_folder.locked(job.folder):
                    for path in job.folder.iterdir():
                        if path.name != run_folder.LOCK:
                            path.unlink()
        except ConfigError as held:
            return held
        except OSError as error:
            raise ConfigError(f"--runs {self.root}: cannot be written ({error.strerror}); choose another --runs") from None


def _told(job):
    """(facts, whether all is trained) as the state of the run tells; ({}, False) when it is damaged.

    The facts: the split of its data, the test accuracy of a run that reports on val (%), its sessions on whatever machine,
    before them those that only the record knows.
    """
    try:
        state = run_folder.load_state(job.folder)[0]
    except ConfigError as error:
        print(error, file=sys.stderr)
        return {}, False
    told = sessions.earlier(state)
    dated = [session for session in told if session["began"]]
    older = [s for s in job.record["sessions"] if s["began"] and (not dated or s["began"] < dated[0]["began"])]
    facts = {"data_split": state.get("split"), "tested": None if state.get("tested") is None else 100 * state["tested"]}
    known = {name: value for name, value in facts.items() if value is not None}
    facts = {"sessions": [*(older or told[: len(told) - len(dated)]), *dated], **known}
    return facts, finished(state, job.record["planned"], job.record["target"])
