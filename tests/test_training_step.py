"""One step: pieces of a batch, clipping, the moving average, another objective, and the same bits from graphs."""

import dataclasses

import pytest
import torch
from test_training_graph import Emulated

from cct.models import create_model
from cct.training import graph
from cct.training.config import Config
from cct.training.distributed import Workers
from cct.training.losses import cross_entropy
from cct.training.objective import Classification
from cct.training.optim import clip_gradients, make_ema
from cct.training.step import Step

CPU, ALONE = torch.device("cpu"), Workers()
TINY = {"img_size": 8, "in_chans": 1, "embedding_dim": 32, "num_layers": 2, "num_heads": 1, "n_conv_layers": 1}
STILL = {"dropout": 0.0, "attention_dropout": 0.0, "stochastic_depth": 0.0}


def stepper(config, objective=None, **model_arguments):
    torch.manual_seed(0)
    model = create_model("cct_2_3x2", num_classes=10, **TINY, **model_arguments).train()
    return Step(model, objective or Classification(config.smoothing), config, CPU, ALONE)


def batch(n=7, soft=False):
    """images, targets, n."""
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(n, 1, 8, 8, generator=generator), torch.arange(n) % 10
    return images, torch.rand(n, 10, generator=generator).softmax(1) if soft else labels, n


def trained(step, steps=4, **kind):
    """Values of the objective at each step, and the weights at the end."""
    values = []
    for i in range(steps):
        values.append(step.gradients(*batch(**kind), epoch=0, step=i))
        step.update(2**-10)  # exact in float32, in which graphs keep it
    return torch.stack(values), step.model.state_dict()


@pytest.mark.parametrize("n", [7, 2])  # 2: fewer images than pieces
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_pieces_give_the_gradient_of_the_whole_batch(n, amp):
    config = Config(amp=amp)
    whole, pieces = (stepper(dataclasses.replace(config, accumulate_steps=k), **STILL) for k in (1, 3))
    values = [step.gradients(*batch(n), epoch=0, step=0) for step in (whole, pieces)]
    tolerance = {"rtol": 1e-5, "atol": 1e-7} if amp == "off" else {"rtol": 0.05, "atol": 2e-3}
    torch.testing.assert_close(values[1], values[0], **tolerance)
    for (name, a), b in zip(whole.model.named_parameters(), pieces.model.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, **tolerance, msg=name)


def test_dropout_is_a_function_of_the_position():
    config = Config()
    first, again, later = (stepper(config, dropout=0.3) for _ in range(3))
    torch.randn(5)  # whatever was drawn before
    losses = [step.gradients(*batch(), epoch=2, step=s)[0] for step, s in ((first, 5), (again, 5), (later, 6))]
    assert losses[0] == losses[1] != losses[2]


def test_soft_targets_count_the_larger_share():
    model = torch.nn.Identity()
    logits, targets = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([[0.7, 0.3, 0.0], [0.6, 0.4, 0.0]])
    loss, top1 = Classification(smoothing=0.1)(model, logits, targets, 0)
    assert top1 == 0.5 and loss == cross_entropy(logits, targets)
    values, _ = trained(stepper(Config()), soft=True)
    assert (values[1:, 0] < values[:-1, 0]).all()


class Taught(Classification):
    """Beside the labels, the logits of a teacher: what distillation will look like."""

    names = ("loss", "top1", "teacher_loss")

    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher.eval()

    def __call__(self, model, images, targets, epoch):
        loss, top1 = super().__call__(model, images, targets, epoch)
        with torch.no_grad():
            taught = self.teacher(images).softmax(1)
        second = cross_entropy(model(images), taught)
        return loss + second / (1 + epoch), top1, second


def test_a_second_loss_needs_an_objective_only():
    torch.manual_seed(1)
    teacher = create_model("cct_2_3x2", num_classes=10, **TINY)
    before = [p.clone() for p in teacher.parameters()]
    step = stepper(Config(), Taught(teacher), **STILL)
    values = [step.gradients(*batch(), epoch=e, step=0) for e in (0, 1)]
    plain = stepper(Config(smoothing=0.0), **STILL).gradients(*batch(), epoch=0, step=0)
    torch.testing.assert_close(values[0][0], plain[0] + values[0][2])
    torch.testing.assert_close(values[1][0], plain[0] + values[1][2] / 2)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


class EmulatedPair(Emulated):
    def __init__(self, function):
        super().__init__(function)
        self.result = torch.zeros(2, dtype=torch.float64)


@pytest.mark.parametrize(("clip_mode", "opt"), [("norm", "adamw"), ("value", "adamw"), ("agc", "adamw"), ("norm", "muon")])
def test_graphs_give_the_same_bits(monkeypatch, clip_mode, opt):
    config = Config(model_ema=True, model_ema_warmup=True, clip_grad=0.01, clip_mode=clip_mode, opt=opt)
    values, weights = trained(stepper(config, dropout=0.1), steps=6)
    monkeypatch.setattr(Emulated, "captures", 0)
    monkeypatch.setattr(graph, "wanted", lambda device: True)
    monkeypatch.setattr(graph, "capture", lambda function, device: ((g := EmulatedPair(function)), g.result))
    step = stepper(config, dropout=0.1)
    found, found_weights = trained(step, steps=6)
    assert torch.equal(found, values) and all(torch.equal(found_weights[name], weights[name]) for name in weights)
    assert (captures := Emulated.captures) > 0 and step.ema.n_averaged == 6
    step.load_state_dict(step.state_dict())  # other tensors in the optimizer: the graphs of before would move the old ones
    trained(step, steps=6)
    assert Emulated.captures == 2 * captures
    assert stepper(dataclasses.replace(config, accumulate_steps=2)).graph is None


def gradients_after(mode, limit):
    torch.manual_seed(0)
    model = create_model("cct_2_3x2", num_classes=10, **TINY)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    clip_gradients(model, limit, mode)
    return dict(model.named_parameters()), before


def test_clipping_the_norm_and_the_values():
    after, before = gradients_after("norm", 0.5)
    assert torch.stack([p.grad.norm() for p in after.values()]).norm().item() == pytest.approx(0.5, rel=1e-4)
    after, before = gradients_after("value", 0.5)
    assert all(torch.equal(p.grad, before[name].clamp(-0.5, 0.5)) for name, p in after.items())


def test_adaptive_clipping():
    limit = 0.02
    after, before = gradients_after("agc", limit)
    assert torch.equal(after["classifier.fc.weight"].grad, before["classifier.fc.weight"])
    conv = after["tokenizer.conv_layers.0.0.weight"]
    rows, grads = conv.detach().flatten(1), before["tokenizer.conv_layers.0.0.weight"].flatten(1)
    expected = grads * (limit * rows.norm(dim=1).clamp(min=1e-3) / grads.norm(dim=1)).clamp(max=1)[:, None]
    torch.testing.assert_close(conv.grad.flatten(1), expected)
    norm = after["classifier.norm.bias"]  # zero at the start: the least norm of weights counts
    torch.testing.assert_close(norm.grad.norm(), torch.tensor(limit * 1e-3))


def test_moving_average_with_a_warm_up():
    model = torch.nn.Linear(2, 1)
    ema, expected = make_ema(model, 0.3, warmup=True), None
    for step in range(4):
        with torch.no_grad():
            model.weight.add_(1.0)
        ema.update_parameters(model)
        decay = min(0.3, (1 + step) / (10 + step))
        weight = model.weight.detach().clone()
        expected = weight if step == 0 else decay * expected + (1 - decay) * weight
    torch.testing.assert_close(ema.module.weight.detach(), expected)
    assert (1 + 2) / (10 + 2) < 0.3 < (1 + 3) / (10 + 3)
