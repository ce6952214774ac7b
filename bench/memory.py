"""Peak memory of training steps in a fresh process: `python -m bench.memory LABEL PEER BATCH DTYPE DEVICE THREADS`, in bytes.

On the CPU: the highest resident set during two steps, less that before them, with model and batch in place. On a GPU: the
highest allocation less that before.
"""

import re
import sys
from pathlib import Path

import torch

from .peers import MODULES
from .test_models import DTYPES, images, plain_model, training_step


def main(label, peer, batch, dtype, device, threads):
    torch.set_num_threads(int(threads))
    module = MODULES[peer](plain_model(label, device).train())
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-4, weight_decay=0.06, fused=True)
    x, labels = images(module if hasattr(module, "in_chans") else module.model, int(batch), device)
    before = reset_peak(device)
    for _ in range(2):
        training_step(module, optimizer, x, labels, DTYPES[dtype])
    print(peak(device) - before)


def reset_peak(device):
    """The memory in use now, from which the peak counts again."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM starts again from VmRSS
    return _status("VmRSS")


def peak(device):
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(field):
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
