"""Packed weights are kept between calls: a changed weight must never meet its old panels."""

import copy
import ctypes
import gc

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrizations, prune

from cct_kernels import constant_weights, conv_tokenizer, layernorm_mlp, reference
from cct_kernels.dispatch import machine_why_not
from cct_kernels.testing import cases, make_inputs

pytestmark = pytest.mark.skipif(machine_why_not("cpu") is not None, reason=str(machine_why_not("cpu")))


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        tensors = make_inputs(cases("layernorm_mlp")[1], torch.float32)
        self.x = tensors.pop("x")
        self.names = list(tensors)
        for name, value in tensors.items():
            self.register_parameter(name, torch.nn.Parameter(value))

    def forward(self, op=layernorm_mlp):
        return op(self.x, **{name: getattr(self, name) for name in self.names})


def drawn(like):
    """Random values of that shape whose products with numbers near 1 stay near 1."""
    return torch.randn(like.shape) / like.shape[-1] ** (0.5 * (like.dim() > 1))


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
    block.fc1_weight.data = drawn(block.fc1_weight)


def replaced(block):
    block.fc1_weight = torch.nn.Parameter(drawn(block.fc1_weight))


def load(block):
    block.load_state_dict({name: drawn(value) for name, value in block.state_dict().items()})


def optimizer(block, **kind):
    block().square().sum().backward()
    torch.optim.AdamW(block.parameters(), lr=0.1, **kind or {"fused": True}).step()


def foreach_optimizer(block):
    optimizer(block, foreach=True)


def through_a_view(block):
    with torch.no_grad():
        block.fc1_weight.t()[1].mul_(-3.0)


def another_storage(block):
    with torch.no_grad():
        block.fc1_weight.set_(drawn(block.fc1_weight).untyped_storage(), 0, block.fc1_weight.shape)


def through_the_storage(block):
    block.fc1_weight.untyped_storage()[3] = 0x41  # the exponent of the first element


def released_and_filled_again(block):  # as sharded training does
    storage, value = block.fc1_weight.untyped_storage(), drawn(block.fc1_weight)
    size = storage.nbytes()
    storage.resize_(0)
    storage.resize_(size)
    block.fc1_weight.data.copy_(value)


def swapped(block):
    torch.utils.swap_tensors(block.fc1_weight, torch.nn.Parameter(drawn(block.fc1_weight)))


def two_weights_change_places(block):
    one, two = block.fc1_weight, block.fc2_weight
    one.data, two.data = two.data.view(one.shape), one.data.view(two.shape)


def in_shared_memory(block):
    block.share_memory()
    block()
    block.fc1_weight.data.mul_(2.0)


def in_numpy_memory(block):
    array = drawn(block.fc1_weight).numpy()
    block.fc1_weight.data = torch.from_numpy(array)
    block()
    array[0, 0] += 50


def in_inference_mode(block):
    with torch.inference_mode():
        block.fc1_weight.mul_(2.0)


def through_an_address(block):  # PyTorch sees that it was given away, not what is done with it, today or tomorrow
    address = block.fc1_weight.data_ptr()
    block()
    ctypes.c_float.from_address(address).value += 50.0


def through_dlpack_taken_before(block):
    block.requires_grad_(False)
    array = np.from_dlpack(block.fc1_weight)
    block.fc1_weight.mul_(1.5)
    block()
    array[0, 0] += 50.0


def through_numpy_of_a_detached_one_taken_before(block):
    block.fc1_weight = torch.nn.Parameter(drawn(block.fc1_weight))
    array = block.fc1_weight.detach().numpy()
    block()
    array[0, 0] += 50.0


def a_negative_view(block):
    block.fc1_weight.data = torch._neg_view(block.fc1_weight.data)


def pruned(block):
    prune.l1_unstructured(block, "fc1_weight", 0.7)


def parametrized(block):
    parametrizations.weight_norm(block, "fc1_weight")
    block()
    block.parametrizations.fc1_weight.original0.data.mul_(3.0)


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
    replaced_data, replaced, load, optimizer, foreach_optimizer, through_a_view, another_storage, through_the_storage,
    released_and_filled_again, swapped, two_weights_change_places, in_shared_memory, in_numpy_memory, in_inference_mode,
    through_an_address, through_dlpack_taken_before, through_numpy_of_a_detached_one_taken_before, a_negative_view, pruned,
    parametrized, moved, another_instruction_set,
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


@pytest.mark.skipif(torch.__version__ < (2, 13), reason="PyTorch tells since 2.13 who asks for memory to write to it")
@torch.no_grad()
def test_memory_that_nobody_asked_for_is_not_read_again():
    """Seen at what is written to an address from before, which cannot be seen, and is the limit of it."""
    block = Block()
    element = ctypes.c_float.from_address(block.fc1_weight.data_ptr())
    before = block()
    kept = element.value
    element.value += 50.0
    assert torch.equal(block(), before)
    block.fc1_weight.data_ptr()  # may be for writing
    torch.testing.assert_close(block(), block(reference.layernorm_mlp), rtol=1e-4, atol=1e-4)
    for element.value in (kept, kept + 7.0):  # and from now on without being asked for again
        torch.testing.assert_close(block(), block(reference.layernorm_mlp), rtol=1e-4, atol=1e-4)


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
        block.fc1_weight.copy_(drawn(block.fc1_weight))
        torch.testing.assert_close(block(), block(reference.layernorm_mlp), rtol=1e-4, atol=1e-4)
        del block


@torch.no_grad()
def test_constant_weights():
    """The promise holds from its block on: changes before it, counted changes in it and all changes after it are seen."""

    def is_current(block):
        found, expected = block(), block(reference.layernorm_mlp)
        return torch.allclose(found, expected, rtol=1e-4, atol=1e-4)

    block = Block()
    block()
    block.fc1_weight.data.mul_(2.0)
    with constant_weights():
        assert is_current(block)
        block.fc1_weight.mul_(1.5)
        assert is_current(block)
        with constant_weights():
            block.fc2_weight.data.mul_(3.0)  # a block of its own, which has not read it yet
            assert is_current(block)
        assert is_current(block)
        block.fc1_weight.data.mul_(2.0)
        assert not is_current(block)  # what was promised not to happen: nothing of it is looked at
        block.fc1_weight.data.mul_(0.5)
    block.fc2_weight.data.mul_(2.0)
    assert is_current(block)


@torch.no_grad()
def test_old_values_that_come_back_after_constant_weights():
    """As an evaluation of averaged weights leaves them, put back through `.data`."""
    block = Block()
    average = drawn(block.fc1_weight)
    own = block.fc1_weight.detach().clone()
    with constant_weights():
        block()
        block.fc1_weight.copy_(average)
        block()
    block.fc1_weight.data.copy_(own)
    torch.testing.assert_close(block(), block(reference.layernorm_mlp), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_weights_of_a_functional_call():
    block = Block()
    for factor in (1.0, 2.0, 3.0):
        state = {name: factor * value for name, value in block.state_dict().items()}
        found, expected = (torch.func.functional_call(block, state, (op,)) for op in (layernorm_mlp, reference.layernorm_mlp))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_large_results_come_from_the_pool_and_can_be_released():
    gc.collect()  # no result of another test comes back meanwhile
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


@torch.no_grad()
def test_sizes_that_vary_do_not_pile_up():
    gc.collect()
    torch.ops.cct_kernels.release_memory()
    weights = {name: value for name, value in make_inputs(cases("layernorm_mlp")[1], torch.float32).items() if name != "x"}
    sizes = []
    for images in range(32, 132, 4):
        sizes.append(layernorm_mlp(torch.randn(images, 64, 128), **weights).nbytes)
    assert sum(sizes) > 8 * max(sizes)
    assert max(sizes) <= torch.ops.cct_kernels.release_memory() <= 2 * max(sizes) + 4096


def test_large_results_can_be_resized():
    """As any tensor, by itself and as the target of another call; its memory then goes back to the pool."""
    weights = {name: value for name, value in make_inputs(cases("layernorm_mlp")[1], torch.float32).items() if name != "x"}
    gc.collect()
    torch.ops.cct_kernels.release_memory()
    out = layernorm_mlp(torch.randn(64, 64, 128), **weights)
    kept, address = out.clone(), out.data_ptr()
    out.resize_(130, 64, 128)
    assert out.data_ptr() != address and torch.equal(out[:64], kept)
    assert kept.nbytes <= torch.ops.cct_kernels.release_memory() <= kept.nbytes + 4096
    more = torch.ones(300, 64, 128)
    assert torch.equal(torch.add(more, 1, out=out.resize_(0)), more + 1)


def inside(call):
    """The operators that a call runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return [event.name for event in profile.events()]


def test_backward_drops_what_forward_packed():
    """Panels of a weight that is trained are not kept beyond its gradient; those of one that is not are."""
    for trained in (True, False):
        block = Block()
        block.x.requires_grad_()
        for parameter in block.parameters():
            parameter.requires_grad_(trained)
        block()
        kept = inside(block)
        block().sum().backward()
        assert (inside(block) == kept) is not trained
        assert inside(block) == kept
        block().sum().backward()  # adds to the gradients
        assert inside(block) == kept
        for parameter in block.parameters():
            parameter.grad = None
        with constant_weights():
            block().sum().backward()
        assert inside(block) == kept


@pytest.mark.parametrize("kernel", [3, 4])  # by Winograd's filter in float32, and not
def test_channels_last_weights_are_packed_once(kernel):
    x, weight = torch.randn(2, 32, 8, 8), torch.randn(64, 32, kernel, kernel)
    other = weight.to(memory_format=torch.channels_last)

    def call(w):
        with torch.no_grad():
            return conv_tokenizer(x, w, backend="cpu")

    assert not other.is_contiguous() and torch.equal(call(other), call(weight))
    assert inside(lambda: call(other)) == inside(lambda: call(weight))  # as many as for a weight whose panels are kept
    for change in (other.data.mul_, other.mul_):
        change(2.0)
        assert torch.equal(call(other), call(other.contiguous()))
    swapped = torch.as_strided(other, (64, 32, kernel, kernel), (32 * kernel**2, kernel**2, kernel, 1))  # the same memory
    assert torch.equal(call(swapped), call(swapped.clone())) and torch.equal(call(other), call(other.contiguous()))
