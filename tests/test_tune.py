"""The search for Triton configurations, without a GPU: what it searches, how, and what it prints."""

import ast
import importlib.util
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is not installed

from bench import tune

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@needs_triton
@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_90", "sm_100"])
def test_every_entry_is_compiled_for_the_table_of_resources(arch):
    from bench import triton_resources as resources
    from cct_kernels.triton import aot

    def of_case(case, dtype):
        return tune.Job(str(case), dtype, lambda arch: aot.compiled(arch, case, dtype), None)

    def of_encoder(sizes, options):
        return tune.Job(
            "encoder", torch.bfloat16, lambda arch: aot.compiled_encoder(arch, torch.bfloat16, *sizes, **options), None
        )

    dtypes, sizes, ways = (torch.bfloat16, torch.float32), resources.ENCODERS, resources.WAYS.values()
    jobs = [of_case(case, dtype) for dtype in dtypes for case in resources.cases()]
    jobs += [of_encoder(size, options) for size in sizes for options in ways]
    assert tune.unread(jobs, arch) == []


@needs_triton
def test_every_table_is_found_and_every_leaf_has_a_job():
    found = tune.tables("sm_90")
    assert {"attention.CONFIGS", "linear.CONFIGS", "conv_tokenizer.CONFIGS", "seqpool.CONFIGS"} <= set(found)
    assert {"layernorm_mlp.FORWARD", "layernorm_mlp.BACKWARD"} <= set(found)
    leaves = [leaf for name, table in found.items() for leaf in tune.leaves(table, name)]
    before = [leaf.value for leaf in leaves]
    tune.assign(leaves, tune.jobs(1), "sm_90")
    assert [leaf.value for leaf in leaves] == before
    assert [str(leaf) for leaf in leaves if not leaf.jobs] == []
    jobs = {str(leaf): leaf.jobs[0] for leaf in leaves if leaf.jobs}
    forward = jobs["attention.CONFIGS['forward'][2][256]"]
    assert forward.name == "layernorm_attention-B2_N256_C256_H4 bfloat16"
    assert jobs["linear.CONFIGS[4]['linear']"].dtype == torch.float32


def test_shared_leaves_count_once():
    shared = {1: (16, 4)}
    table = {"forward": shared, "backward": {2: shared, 3: (32, 8)}}
    assert [str(leaf) for leaf in tune.leaves(table, "T")] == ["T['backward'][2][1]", "T['backward'][3]"]


class Config(NamedTuple):
    rows: int
    warps: int


def test_neighbours():
    assert list(tune.neighbours((64, 4))) == [(32, 4), (128, 4), (64, 2), (64, 3), (64, 5), (64, 8)]
    assert list(tune.neighbours((1,))) == [(2,)]
    assert next(iter(tune.neighbours(Config(64, 4)))) == Config(32, 4)


def test_search_goes_downhill_past_what_fails():
    asked = []

    def seconds(configurations):
        asked.extend(configurations)
        return [float("inf") if c[1] == 2 else 1 + abs(c[0] - 256) / 100 + abs(c[1] - 8) for c in configurations]

    best, after, before = tune.search((64, 4), seconds)
    assert best == (256, 8) and after == 1 and before == pytest.approx(1 + 1.92 + 4)
    assert len(asked) < 60
    assert tune.search((256, 8), seconds)[0] == (256, 8)
    assert tune.search((64, 4), seconds, deadline=0.0, clock=lambda: 1.0)[0] == (64, 4)
    ticks = iter(range(100))
    assert tune.search((64, 4), lambda c: [1.0, 0.99], deadline=3.0, clock=lambda: next(ticks))[0] == (64, 4)  # no real gain


def test_what_fails_or_gives_other_results_is_refused(capsys):
    table = {64: (4, 1)}

    def op(x):
        size, _ = table[64]
        if size == 16:
            raise RuntimeError("out of resource: shared memory")
        if size == 2:
            time.sleep(0.05)
        return x * (2 if size != 8 else 3)

    job = tune.Job("double", torch.float32, None, lambda: ({"x": torch.ones(3)}, op))
    (leaf,) = tune.leaves(table, "T")
    leaf.jobs = [job]
    slow, fast, failed, wrong = tune.Timer(leaf)([(2, 1), (4, 1), (16, 1), (8, 1)])
    assert fast < 0.05 <= slow and failed == wrong == float("inf")
    assert table == {64: (4, 1)} and "(16, 1): RuntimeError" in capsys.readouterr().out


def test_a_configuration_must_hold_with_dropout_too():
    table = {64: (4, 1)}

    def make(dropout):
        def op(x):
            size, _ = table[64]
            if dropout and size < 4:
                raise RuntimeError("no whole groups of columns")
            return 2 * x

        return {"x": torch.ones(3)}, op

    (leaf,) = tune.leaves(table, "T")
    leaf.jobs = [tune.Job("op", torch.float32, None, lambda d=d: make(d), dropout=d) for d in (False, False, True)]
    fine, failed = tune.Timer(leaf)([(8, 1), (2, 1)])
    assert fine < 1 and failed == float("inf")


def test_printed_tables_are_literals():
    table = {"forward": {2: {64: (64, 64, 4, 1), None: (64, 64, 4, 2)}, 4: {None: (16, 64, 8, 1)}}}
    printed = tune.text("attention.CONFIGS", "sm_90", table, "tuned on a GPU")
    assert printed.startswith("# tuned on a GPU\n# attention.CONFIGS['sm_90']:\n")
    assert ast.literal_eval(printed.split(":\n", 1)[1]) == table


def test_without_a_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as exit:
        tune.main([])
    assert exit.value.code == 2 and "no CUDA GPU" in capsys.readouterr().err
