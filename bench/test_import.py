"""Import time on top of PyTorch's, in fresh processes."""

import dataclasses
import statistics
import subprocess
import sys

from . import record
from .timing import summary

MODULES = ("cct_kernels", "cct.models", "cct.cli")
LIMIT = 0.5  # seconds
CODE = "import torch, time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def test_import_time(bench):
    samples = {name: [] for name in MODULES}
    for _ in range(bench.rounds):
        for name in MODULES:
            done = subprocess.run([sys.executable, "-c", CODE.format(name)], cwd=record.ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            samples[name].append(float(done.stdout))
    peers = {name: dataclasses.asdict(summary(values)) for name, values in samples.items()}
    bench.keep(record.make({"kind": "import", "what": "on top of torch"}, peers, {}))
    assert all(statistics.median(values) < LIMIT for values in samples.values()), samples
