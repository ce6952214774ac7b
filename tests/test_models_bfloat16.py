"""The models of the fixtures in bfloat16, and in float32 under autocast: logits and every gradient by the numerics rule.

PyTorch's own numbers come from a process in which its libraries keep to AVX-512: its bfloat16 convolution by AMX has given NaN
for zeros, and a backward pass of it a crash (2.13.0, November 2026).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_models_fixtures import CASES, Case, case_id, run

KINDS = {"bfloat16": torch.bfloat16, "autocast": torch.float32}  # the dtype of weights and images
TRAINED = [case for case in CASES if case[1] == "B"]


def prepared(folder, case, kind):
    """(model with fused=False, inputs, incoming gradient), everything rounded as the test has it."""
    case = Case(folder, *case, fused=False)
    inputs = [t.to(KINDS[kind]) if t.is_floating_point() else t for t in case.inputs]
    return case.model.to(KINDS[kind]), inputs, case.incoming.to(torch.bfloat16).float()


def autocast(kind):
    return torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """{(case, kind): numbers of plain PyTorch}, made on the first call for a folder."""
    made = {}

    def numbers(folder):
        if not made:
            file = tmp_path_factory.mktemp("plain") / "numbers.pt"
            environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
            command = [sys.executable, __file__, str(folder), str(file)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
            made.update(torch.load(file))
        return made

    return numbers


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="PyTorch emulates bfloat16 here: minutes a model")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", TRAINED, ids=case_id)
def test_training_by_the_numerics_rule(fixtures, plain, case, kind):
    """err(fused) <= 2 err(PyTorch) + 4 eps |exact| in the L2 norm; exact: float64 on the same weights and inputs."""
    own = plain(fixtures)[case, kind]
    model, inputs, incoming = prepared(fixtures, case, kind)
    model.fused = True
    with autocast(kind):
        fused = run(model, inputs, incoming)
        with torch.no_grad():
            fused["logits without gradients"] = model(*inputs).double()
    model.fused = False
    exact = run(model.double(), [t.double() if t.is_floating_point() else t for t in inputs], incoming)
    for numbers in (own, exact):
        numbers["logits without gradients"] = numbers["logits"]
    assert fused.keys() == exact.keys()
    for key in exact:
        allowed = 2 * (own[key] - exact[key]).norm() + 4 * torch.finfo(torch.bfloat16).eps * exact[key].norm()
        assert (fused[key] - exact[key]).norm() <= allowed, key


if __name__ == "__main__":
    folder, file = map(Path, sys.argv[1:])
    numbers = {}
    for case in TRAINED:
        for kind in KINDS:
            model, inputs, incoming = prepared(folder, case, kind)
            with autocast(kind):
                numbers[case, kind] = run(model, inputs, incoming)
    torch.save(numbers, file)
