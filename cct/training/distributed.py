"""The processes of a run: one alone, or those that `torchrun` starts and that share every batch."""

import contextlib
import datetime
import gc
import importlib
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from .run_folder import RunError

# Of a process for the others: one may download or read a large data set meanwhile. One that is gone is noticed at once on the
# same machine, and by gloo; NCCL between machines waits so long for it.
PATIENCE = datetime.timedelta(hours=2)


@dataclass(frozen=True)
class Workers:
    """The processes of a run, seen from one of them: `rank` of `count`, `local_rank` of `local_count` on this machine.

    Alone (count 1, the default) every method does nothing, at no cost.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def first(self):
        """Whether this is the process that logs and writes files."""
        return self.rank == 0

    def span(self, n):
        """slice: our part of n things, cut as evenly as they can be."""
        return slice(self.rank * n // self.count, (self.rank + 1) * n // self.count)

    def parallel(self, model, device):
        """The model as one whose backward pass averages the gradients over the workers."""
        if self.count == 1:
            return model
        ids = [device.index] if device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def sum_(self, values):
        """Sum the tensor over the workers, in place; every worker gets the same bits."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def greatest(self, *numbers):
        """The greatest of each of these integers over the workers, so that all of them decide alike."""
        if self.count == 1:
            return numbers
        values = torch.tensor(numbers)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return tuple(values.tolist())

    def share(self, value):
        """`value` of the first worker, on all of them."""
        if self.count == 1:
            return value
        box = [value if self.first else None]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    @contextlib.contextmanager
    def first_here_first(self):
        """One worker of each machine goes through the block, and fetches what is missing, before the others do."""
        if self.local_rank:
            self.greatest(0)
        try:
            yield
        finally:
            if not self.local_rank:
                self.greatest(0)

    @contextlib.contextmanager
    def together(self):
        """All workers come out of the block, or all end: the first that failed in it with its error, the others silently."""
        error = None
        try:
            yield
        except Exception as raised:
            if self.count == 1:
                raise
            error = raised
        (lowest,) = self.greatest(self.count - self.rank if error else 0)
        if lowest == self.count - self.rank:
            raise error
        if lowest:
            raise SystemExit(1)

    @contextlib.contextmanager
    def watch(self, advice):
        """A lost worker becomes a RunError that ends with `advice`."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _lost(error):
                raise
            reason = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0][:80]
            raise RunError(f"lost another of the {self.count} workers: it was killed or failed ({reason}). {advice}") from error


def _lost(error):
    """Whether this is what a collective raises when another process is gone; gloo has no type of its own for that."""
    return not isinstance(error, RunError) and (isinstance(error, dist.DistError) or "gloo" in str(error))


@contextlib.contextmanager
def joined():
    """The Workers that this process is one of: those of torchrun, connected (gloo, and NCCL for GPUs), or itself alone.

    No model of `Workers.parallel` may outlive the block.
    """
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield Workers()
        return
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    workers = Workers(*(int(os.environ[name]) for name in names))
    # Its functions have the group of their import as a default argument: imported later, by DDP, they would keep it alive.
    importlib.import_module("torch.distributed.nn.functional")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    yield workers
    # Only the last owner of the group ends gloo's threads; one that frees a tensor while Python shuts down aborts the process.
    gc.collect()  # DDP's modules are owners too
    dist.destroy_process_group()  # not after an error: it would wait for workers that are gone
