"""First-call costs paid in advance, and nothing of the model changed by it."""

import pytest
import torch

from cct.models import create_model
from cct_kernels import warmup

DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]


def sizes_seen(model, batches, **options):
    seen = []
    hook = model.register_forward_pre_hook(lambda module, args: seen.append((len(args[0]), module.training)))
    warmup(model, batches, **options)
    hook.remove()
    return seen


@pytest.mark.parametrize("device", DEVICES)
def test_runs_each_size_and_direction(device):
    model = create_model("cct_2_3x2", img_size=16).to(device)
    assert sizes_seen(model, (1, 3)) == [(1, False), (3, False)]
    assert sizes_seen(model, 2, train=True) == [(2, False), (2, True)]
    backward = []
    model.tokenizer.conv_layers[0][0].weight.register_hook(backward.append)
    warmup(model, 2)
    assert not backward
    assert warmup(model, 2, train=True) > 0 and len(backward) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_changes_nothing(device):
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), create_model("cct_2_3x2", img_size=16, dropout=0.5)).to(device).train()
    model[0].eval()
    model[1].classifier.fc.weight.grad = torch.ones_like(model[1].classifier.fc.weight)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3), torch.rand(3, device=device)
    torch.manual_seed(5)
    warmup(model, 2, train=True, example=torch.zeros(1, 3, 16, 16, device=device))
    assert torch.equal(torch.rand(3), expected[0]) and torch.equal(torch.rand(3, device=device), expected[1])
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert model.training and model[1].training and not model[0].training
    gradients = {name for name, p in model.named_parameters() if p.grad is not None}
    assert gradients == {"1.classifier.fc.weight"} and (model[1].classifier.fc.weight.grad == 1).all()


def test_text_and_half_precision():
    assert sizes_seen(create_model("text_cct_2", seq_len=16, vocab_size=9), 2, train=True) == [(2, False), (2, True)]
    with torch.autocast("cpu", torch.bfloat16):
        warmup(create_model("vit_2_4", img_size=16), 2, train=True)


def test_bad_arguments():
    with pytest.raises(ValueError, match="warmup: batch_sizes is 0; expected an int of at least 1"):
        warmup(create_model("cct_2_3x2"), [4, 0])
    with pytest.raises(ValueError, match=r"warmup: Linear does not say its input size .* give one as example="):
        warmup(torch.nn.Linear(2, 2), 1)
