"""Packed weights are kept between calls: a changed weight must never meet its old panels."""

import copy

import pytest
import torch

from cct_kernels import layernorm_mlp, reference
from cct_kernels.dispatch import machine_why_not
from cct_kernels.testing import cases, make_inputs

pytestmark = pytest.mark.skipif(machine_why_not("cpu") is not None, reason=str(machine_why_not("cpu")))


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        tensors = make_inputs(cases("layernorm_mlp")[1], torch.float32)
        self.x = tensors.pop("x")
        for name, value in tensors.items():
            self.register_parameter(name, torch.nn.Parameter(value))

    def forward(self, op=layernorm_mlp):
        return op(self.x, **dict(self.named_parameters()))


def in_place(block):
    with torch.no_grad():
        block.fc1_weight[3, 5] += 1.0


def through_data(block):
    block.fc1_weight.data.mul_(2.0)


def one_element_through_data(block):
    block.fc1_weight.data[2, 7] += 10.0


def one_element_through_numpy(block):
    block.fc2_weight.detach().numpy()[5, 3] += 10.0


def exchanged_through_data(block):
    block.fc1_weight.data[[0, 1]] = block.fc1_weight.data[[1, 0]].clone()


def replaced_data(block):
    block.fc1_weight.data = torch.randn_like(block.fc1_weight)


def replaced(block):
    block.fc1_weight = torch.nn.Parameter(torch.randn_like(block.fc1_weight))


def load(block):
    block.load_state_dict({name: torch.randn_like(value) for name, value in block.state_dict().items()})


def optimizer(block):
    block().square().sum().backward()
    torch.optim.AdamW(block.parameters(), lr=0.1, fused=True).step()


def moved(block):
    block.to(torch.float64).to(torch.float32)
    in_place(block)


def another_instruction_set(block):
    native = torch.ops.cct_kernels
    before = native.cpu_isa()
    native.set_cpu_isa("generic")
    block()
    native.set_cpu_isa(before)
    in_place(block)


CHANGES = [
    in_place, through_data, one_element_through_data, one_element_through_numpy, exchanged_through_data,
    replaced_data, replaced, load, optimizer, moved, another_instruction_set,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@torch.no_grad()
def test_a_change_is_seen(change):
    block = Block()
    for _ in range(2):  # the second call finds the panels of the first
        torch.testing.assert_close(block(), block(reference.layernorm_mlp), rtol=1e-4, atol=1e-4)
    before = block()
    with torch.enable_grad():
        change(block)
    after = block()
    torch.testing.assert_close(after, block(reference.layernorm_mlp), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, after)


@torch.no_grad()
def test_a_copy_has_panels_of_its_own():
    block = Block()
    block()
    other = copy.deepcopy(block)
    in_place(other)
    torch.testing.assert_close(other(), other(reference.layernorm_mlp), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(block(), block(reference.layernorm_mlp), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_new_weights_in_the_memory_of_old_ones():
    """Freed memory comes back at the same address: the panels belong to the tensor, not to the address."""
    for _ in range(20):
        block = Block()
        torch.nn.init.normal_(block.fc1_weight)
        torch.testing.assert_close(block(), block(reference.layernorm_mlp), rtol=1e-4, atol=1e-4)
        del block


def test_large_results_come_from_the_pool_and_can_be_released():
    x = torch.randn(64, 64, 128)
    weights = {name: value for name, value in make_inputs(cases("layernorm_mlp")[1], torch.float32).items() if name != "x"}
    out = layernorm_mlp(x, **weights)
    kept = out.clone()
    address = out.data_ptr()
    del out
    again = layernorm_mlp(x, **weights)
    assert again.data_ptr() == address
    assert torch.equal(again, kept)
    del again
    assert torch.ops.cct_kernels.release_memory() >= kept.nbytes
    assert torch.ops.cct_kernels.release_memory() == 0
