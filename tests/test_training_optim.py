"""Optimizer, weight-decay groups and moving average."""

import numpy as np
import pytest
import torch
from test_models_fixtures import noise, weight

from cct.models import create_model
from cct.training.config import Config
from cct.training.losses import cross_entropy
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
