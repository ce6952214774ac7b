"""Optimizer, weight-decay groups and moving average."""

import copy

import numpy as np
import pytest
import torch
from test_models_fixtures import noise, weight

from cct.models import create_model
from cct.training.config import Config, ConfigError
from cct.training.losses import cross_entropy
from cct.training.muon import Muon, orthogonal
from cct.training.optim import make_ema, make_optimizer, parameter_groups, set_learning_rate


@pytest.mark.parametrize("variant", ["all_decay", "no_decay_1d"])
def test_five_steps_of_adamw(fixtures, variant):
    stored = np.load(fixtures / "train_trace.npz")
    model = create_model("cct_2_3x2_32").double().eval()
    assert list(model.state_dict()) == stored["keys"].tolist()
    model.load_state_dict({key: weight(key, tensor.shape, "B") for key, tensor in model.state_dict().items()})
    images, labels = noise("trace/input", (4, 3, 32, 32)), torch.from_numpy(stored["targets"])
    optimizer = make_optimizer(model, Config(lr=1e-3, weight_decay=0.06, decay_all=variant == "all_decay"))
    losses = []
    for step in range(6):
        loss = cross_entropy(model(images), labels, 0.1)
        losses.append(loss.item())
        if step < 5:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    np.testing.assert_allclose(losses, stored[f"{variant}_loss"], rtol=1e-9)
    norms = [tensor.norm().item() for tensor in model.state_dict().values()]
    np.testing.assert_allclose(norms, stored[f"{variant}_param_l2"], rtol=1e-8)


def test_groups():
    model = create_model("cct_2_3x2")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay, no_decay = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model, 0.06))
    assert decay | no_decay == set(names.values()) and not decay & no_decay
    assert "classifier.positional_emb" in decay and "classifier.attention_pool.weight" in decay
    assert {"classifier.norm.weight", "classifier.fc.bias", "classifier.attention_pool.bias"} <= no_decay
    assert [group["weight_decay"] for group in parameter_groups(model, 0.06)] == [0.06, 0.0]
    assert [len(group["params"]) for group in parameter_groups(model, 0.06, decay_all=True)] == [len(names)]
    sine = create_model("cct_2_3x2", positional_embedding="sine")
    frozen = id(sine.get_parameter("classifier.positional_emb"))
    assert all(id(p) != frozen for group in parameter_groups(sine, 0.06) for p in group["params"])


def test_sgd_is_nesterov_and_takes_the_rate():
    model = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(model, Config(opt="sgd", lr=0.1, momentum=0.8))
    assert isinstance(optimizer, torch.optim.SGD)
    assert all(group["nesterov"] and group["momentum"] == 0.8 for group in optimizer.param_groups)
    set_learning_rate(optimizer, 0.05)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05]


def test_orthogonal_is_what_is_left_without_the_singular_values():
    matrices = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    found = orthogonal(matrices)
    U, _, Vh = torch.linalg.svd(matrices, full_matrices=False)
    values = U.mT @ found @ Vh.mT
    assert ((values.diagonal(dim1=1, dim2=2) > 0.6) & (values.diagonal(dim1=1, dim2=2) < 1.3)).all()
    assert (values - torch.diag_embed(values.diagonal(dim1=1, dim2=2))).abs().max() < 1e-3
    assert orthogonal(torch.zeros(1, 3, 4)).eq(0).all()


def test_muon_is_that_of_pytorch():
    """Which works in bfloat16, one matrix at a time."""
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((20, 50), (20, 50), (60, 30))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    muon = Muon(ours, lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        before = [p.detach().clone() for p in ours]
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        muon.step()
        reference.step()
        for p, q, old in zip(ours, theirs, before, strict=True):
            assert (p - q).norm() < 0.12 * (p - old).norm()
    conv = torch.nn.Parameter(torch.randn(20, 2, 5, 5))
    flat = torch.nn.Parameter(conv.detach().flatten(1).clone())
    conv.grad = torch.randn_like(conv)
    flat.grad = conv.grad.flatten(1).clone()
    for p in (conv, flat):
        Muon([p], lr=0.1).step()
    torch.testing.assert_close(conv.flatten(1), flat)


def test_muon_takes_the_blocks_and_the_tokenizer_and_goes_on_to_the_same_bits():
    def moved(model, optimizer, steps, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()

    config = Config(opt="muon", lr=1e-2)
    model = create_model("cct_2_3x2", img_size=8, embedding_dim=16, num_heads=1)
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, config)
    groups = [{names[id(p)] for p in group["params"]} for group in optimizer.param_groups]
    assert sum(map(len, groups)) == len(names) and [g["weight_decay"] for g in optimizer.param_groups] == [0.05, 0.05, 0.0]
    linear = {
        f"classifier.blocks.{i}.{n}.weight" for i in (0, 1) for n in ("self_attn.qkv", "self_attn.proj", "linear1", "linear2")
    }
    assert groups[0] == linear | {f"tokenizer.conv_layers.{i}.0.weight" for i in (0, 1)}
    assert "classifier.positional_emb" in groups[1] and "classifier.fc.bias" in groups[2]
    set_learning_rate(optimizer, 0.005)
    assert {group["lr"] for group in optimizer.param_groups} == {0.005}
    moved(model, optimizer, 2, seed=1)
    other = create_model("cct_2_3x2", img_size=8, embedding_dim=16, num_heads=1)
    other.load_state_dict(model.state_dict())
    again = make_optimizer(other, config)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    moved(model, optimizer, 2, seed=2)
    moved(other, again, 2, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_muon_where_there_is_little_to_move():
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList([torch.nn.Linear(3, 4, bias=False)])
    assert len(make_optimizer(model, Config(opt="muon")).optimizers) == 1  # nothing is left for AdamW
    model.fc = torch.nn.Linear(4, 2)
    model.blocks.requires_grad_(False)
    with pytest.raises(ConfigError, match="opt: muon has no trainable weight"):
        make_optimizer(model, Config(opt="muon"))


def test_moving_average():
    model = torch.nn.Linear(2, 1)
    ema = make_ema(model, 0.9)
    expected = model.weight.detach().clone()
    for step in range(3):
        with torch.no_grad():
            model.weight.add_(1.0)
        ema.update_parameters(model)
        # The first update copies: there is nothing to average with yet.
        expected = model.weight.detach().clone() if step == 0 else 0.9 * expected + 0.1 * model.weight.detach()
    torch.testing.assert_close(ema.module.weight.detach(), expected)
