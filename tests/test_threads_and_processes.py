"""Fused models beside threads and processes: thread counts, several threads at once, fork, data-loader workers, DDP."""

import gc
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from cct.models import CCT
from cct_kernels import layernorm_mlp, seqpool
from cct_kernels.dispatch import machine_why_not

pytestmark = pytest.mark.skipif(machine_why_not("cpu") is not None, reason=str(machine_why_not("cpu")))
fork = pytest.mark.skipif("fork" not in mp.get_all_start_methods(), reason="this system does not fork")
DEADLINE = 60  # seconds until a child counts as hung
STATUS = Path("/proc/self/status")


def build(**rates):
    torch.manual_seed(0)
    rates = {"dropout": 0.0, "attention_dropout": 0.0, "stochastic_depth": 0.0} | rates
    return CCT(
        img_size=16, embedding_dim=64, num_layers=2, num_heads=2, mlp_ratio=2, num_classes=5, kernel_size=3, n_conv_layers=2,
        fused="strict", **rates,
    )  # fmt: skip


def batch(n=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 16, 16, generator=generator), torch.arange(n) % 5


def gradients(model, images, labels):
    """The loss and every gradient, by name."""
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad.clone() for n, p in model.named_parameters()}}


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_one_result_for_each_number_of_threads(n, two_threads):
    """Bit by bit from run to run, to rounding between numbers of threads."""
    runs = {}
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        first, second = (gradients(build(dropout=0.1), *batch(n)) for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first), f"{threads} threads"
        runs[threads] = first
    for threads in (2, 3, 4):
        torch.testing.assert_close(runs[threads], runs[1], rtol=1e-4, atol=1e-6)


def test_several_threads_use_one_model(two_threads):
    """As a server does: the kept weights and the memory pool are shared."""
    model, (images, _) = build().eval(), batch(64)
    with torch.no_grad():
        expected = model(images)
    wrong = []

    def serve(i):
        with torch.no_grad():
            for turn in range(6):
                part = slice(8 * i, 8 * i + 8 + 8 * (turn % 2))
                if not torch.allclose(model(images[part]), expected[part], rtol=1e-4, atol=1e-5):
                    wrong.append(i)

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(DEADLINE)
    assert not wrong and not any(t.is_alive() for t in threads)


class Scored(torch.utils.data.Dataset):
    """Items that a fused model gives, computed in the worker: a forward pass or a whole training step."""

    def __init__(self, train):
        self.model, self.train = build(), train

    def __len__(self):
        return 4

    def __getitem__(self, i):
        images, labels = batch()
        if self.train:
            return gradients(self.model.train(), images, labels)["loss"]
        with torch.no_grad():
            return self.model(images + i)


@fork
@pytest.mark.parametrize("train", [False, True], ids=["forward", "step"])
def test_data_loader_workers(train, two_threads):
    data = Scored(train)
    gradients(build(), *batch())  # the parent has used its threads, backward too
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=DEADLINE
    )  # fmt: skip
    for i, out in enumerate(loader):
        torch.testing.assert_close(out, data[i].detach(), rtol=1e-4, atol=1e-5)


def in_children(folder, function, *arguments, world=1):
    """Runs function(rank, *arguments) in forked children; what each returned, by rank."""

    def child(rank):
        try:
            torch.set_num_threads(1)  # GNU OpenMP's team does not survive a fork; data-loader workers do the same
            result = function(rank, *arguments)
        except BaseException:
            result = traceback.format_exc()
        try:
            torch.save(result, folder / f"{rank}.pt")
        finally:
            os._exit(0)  # and nothing of the parent's at its end

    children = [mp.get_context("fork").Process(target=child, args=(rank,)) for rank in range(world)]
    for c in children:
        c.start()
    for c in children:
        c.join(DEADLINE)
    hung = [c for c in children if c.is_alive()]
    for c in hung:
        c.kill()
    assert not hung, "a child hangs"
    results = [torch.load(folder / f"{rank}.pt") for rank in range(world)]
    assert not any(isinstance(result, str) for result in results), results
    return results


@fork
def test_training_goes_on_after_a_fork(two_threads, tmp_path):
    model, expected = build(), gradients(build(), *batch())
    model(batch()[0]).sum().backward()
    model.zero_grad()
    (found,) = in_children(tmp_path, lambda rank: gradients(model, *batch()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients(model, *batch()), expected, rtol=0, atol=0)  # in the parent as before


@fork
@pytest.mark.parametrize("lock", ["weights", "pool"])
def test_fork_while_another_thread_holds_a_lock(lock):
    """In a process of its own, which is small: pytest's would take long for its 60 children."""
    done = subprocess.run([sys.executable, __file__, lock], capture_output=True, text=True, timeout=60 * DEADLINE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]  # of a thread: it would not change the exit code


def fork_while_another_thread_holds_a_lock(lock):
    """The other thread spends much of its time under the lock, so that one of the children would hang."""
    torch.set_num_threads(2)
    ones, weights, stop = torch.ones(8), [torch.randn(8, 8) for _ in range(3000 if lock == "weights" else 1)], threading.Event()
    small, large = torch.randn(1, 1, 8), torch.ones(4, 2**17, 20, requires_grad=True)

    def work():
        while not stop.is_set():
            if lock == "weights":  # a new weight: all that are kept are gone through
                layernorm_mlp(small, ones, ones, weights[0].clone(), ones, weights[0], ones)
            else:  # 40 MB of pages go back to the system
                torch.autograd.grad(seqpool(large, torch.ones(1, 20)).sum(), large)
                torch.ops.cct_kernels.release_memory()

    for weight in weights:
        layernorm_mlp(small, ones, ones, weight, ones, weights[0], ones)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(60):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    torch.set_num_threads(1)
                    layernorm_mlp(small, ones, ones, weights[0].clone(), ones, weights[0], ones)
                    torch.ops.cct_kernels.release_memory()
                    code = 0
                finally:
                    os._exit(code)
            assert ended_well(child)
    finally:
        stop.set()
        thread.join(DEADLINE)


def ended_well(child):
    """Of a child process; one that hangs is killed."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            return status == 0
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def shard(rank, world, folder):
    importlib.import_module("torch.distributed.nn.functional")  # see cct.training.distributed.joined
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        return joint(rank, world)
    finally:
        gc.collect()
        dist.destroy_process_group()


def joint(rank, world):
    model = torch.nn.parallel.DistributedDataParallel(build())
    images, labels = (t.chunk(world)[rank] for t in batch())
    results = gradients(model, images, labels)
    loss = results.pop("loss")
    dist.all_reduce(loss)
    return {"loss": loss / world, **{n.removeprefix("module."): g for n, g in results.items()}}


@fork
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this PyTorch has no gloo")
def test_ddp_gives_the_gradients_of_the_joint_batch(tmp_path):
    expected = gradients(build(), *batch())
    first, second = in_children(tmp_path, shard, 2, tmp_path, world=2)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    fork_while_another_thread_holds_a_lock(sys.argv[1])


AFTER_RESTS = """
import os, sys, time
from pathlib import Path
if {cores}:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{cores}])
given = sorted(os.sched_getaffinity(0))
import torch
sys.path.insert(0, os.path.dirname({here!r}))
from {name} import batch, build, mlp
model, (x, _) = build().eval(), batch(1)
torch.set_num_threads({threads})
with torch.no_grad():
    model(x)
    shared, whole = model(x), mlp()
    for _ in range(8):
        time.sleep(0.03)
        assert torch.equal(model(x), shared), "what one thread makes of a small call differs from what several make"
        time.sleep(0.03)
        assert torch.equal(mlp(), whole)
threads = [int(task.name) for task in Path("/proc/self/task").iterdir()]
assert len(threads) >= {threads}
for thread in threads:
    assert sorted(os.sched_getaffinity(thread)) == given, "a thread stays bound"
"""


def status_of_this_process():
    return STATUS.read_text() if STATUS.exists() else ""


def mlp():
    """A call that threads always share."""
    torch.manual_seed(0)
    return layernorm_mlp(torch.randn(4, 64, 64), torch.ones(64), None, torch.randn(64, 64), None, torch.randn(64, 64), None)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinities")
@pytest.mark.parametrize(("threads", "cores"), [(2, 0), (4, 0), (2, 1)])
def test_threads_move_after_a_rest_and_stay_free(threads, cores):
    """A thread that moves to another core is bound to it for a moment only; more threads than cores get on as well."""
    script = AFTER_RESTS.format(here=__file__, name=__name__.rpartition(".")[2], threads=threads, cores=cores)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=10 * DEADLINE)
    assert done.returncode == 0, done.stderr


WOKEN = """
import os, re, sys, threading, time
from pathlib import Path
import torch
sys.path.insert(0, os.path.dirname({here!r}))
from {name} import batch, build, mlp

def sleeps():  # of the other threads, how often each went to sleep
    time.sleep(0.2)
    tasks = [task for task in Path("/proc/self/task").iterdir() if int(task.name) != threading.get_native_id()]
    return {{t.name: re.search("^voluntary_ctxt_switches:.*", (t / "status").read_text(), re.M)[0] for t in tasks}}

model, (x, _), (many, _) = build().eval(), batch(1), batch(512)
torch.set_num_threads(2)
with torch.inference_mode():
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            mlp(), model(x)
            before = sleeps()
            model(x)
            assert sleeps() == before, f"a small call woke a thread, {{dtype}}"
            for _ in range(20):  # a busy machine may pause between two of them
                model(x)
            assert sleeps() != before, f"of calls that follow one another none woke a thread, {{dtype}}"
            before = sleeps()
            model(many)
            assert sleeps() != before, f"a large call woke no thread, {{dtype}}"
"""


@pytest.mark.skipif("voluntary_ctxt_switches" not in status_of_this_process(), reason="this system does not count switches")
def test_a_small_call_after_a_rest_wakes_no_thread():
    script = WOKEN.format(here=__file__, name=__name__.rpartition(".")[2])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=10 * DEADLINE)
    assert done.returncode == 0, done.stderr
