"""The graphed training step: the same weights as without it. On the CPU the graphs are emulated: functions run again."""

import copy

import pytest
import torch
import torch.nn.functional as F

from cct.data import Augment, batches
from cct.data.dataset import Split
from cct.models import create_model
from cct.training import graph
from cct.training.graph import GraphedFunction, GraphedStep

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


class Emulated:
    """Like a graph it runs nothing before the first replay, and writes its result to the tensor that the capture returned."""

    captures = 0

    def __init__(self, function):
        self.function, self.result = function, torch.zeros((), dtype=torch.float64)
        Emulated.captures += 1

    def replay(self):
        result = self.function()
        if result is not None:
            self.result.copy_(result)


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.setattr(Emulated, "captures", 0)
    monkeypatch.setattr(graph, "capture", lambda function, device: ((g := Emulated(function)), g.result))


def make(optimizer, device):
    torch.manual_seed(0)
    model = create_model("cct_2_3x2", img_size=16, dropout=0.1).to(device).train()
    if optimizer == "sgd":
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)


def functions(model, optimizer):
    def gradients(images, labels):
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        return loss.detach().double()

    def update():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return gradients, update


def some_batches(device):
    """Ten epochs of two whole batches and a short one."""
    generator = torch.Generator().manual_seed(1)
    for step in range(30):
        n = 4 if step % 3 == 2 else 6
        images = torch.randn(n, 3, 16, 16, generator=generator)
        yield images.to(device), torch.randint(10, (n,), generator=generator).to(device), 1e-3 / (1 + step // 6)


def train(optimizer_name, device, graphed):
    model, optimizer = make(optimizer_name, device)
    gradients, update = functions(model, optimizer)
    step = GraphedStep(gradients, update, optimizer, torch.device(device)) if graphed else None
    losses = []
    for i, (images, labels, lr) in enumerate(some_batches(device)):
        torch.manual_seed(i)
        losses.append(step.gradients(images, labels) if graphed else gradients(images, labels))
        for group in optimizer.param_groups:
            group["lr"] = lr if graphed else torch.tensor(lr, device=device)
        step.update() if graphed else update()
        if graphed:
            assert all(group["lr"] == lr and not group.get("capturable") for group in optimizer.param_groups)
        if i == 20 and graphed:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            step.forget()
    return torch.stack(losses), model.state_dict(), step


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_same_bits_as_without(optimizer, device, request):
    if device == "cpu":
        request.getfixturevalue("emulated")
    losses, weights, _ = train(optimizer, device, graphed=False)
    found_losses, found_weights, step = train(optimizer, device, graphed=True)
    assert torch.equal(found_losses, losses)
    assert all(torch.equal(found_weights[name], value) for name, value in weights.items())
    assert {key[0][0][0]: kind.graph is not None for key, kind in step._gradients.kinds.items()} == {6: True, 4: False}
    if device == "cpu":  # both kinds before `forget`, the usual one after it, two graphs each
        assert Emulated.captures == 6


def test_settings_and_missing_tensors_choose_the_graph(emulated):
    """Each kind is captured after its own first calls, and sees the tensors of every call."""
    seen = []

    def function(scale, x, bias):
        seen.append(x)
        return (x * scale if bias is None else x * scale + bias).sum().double()

    graphed = GraphedFunction(function, torch.device("cpu"))
    one = torch.ones(2)
    for i in range(2 * graph.WARMUP):
        x = torch.full((2,), float(i))
        assert graphed(3, x, None) == 6 * i and graphed(4, x, None) == 8 * i and graphed(3, x, one) == 6 * i + 2
    assert Emulated.captures == 3
    assert all(not any(x is static for x in seen[: 3 * graph.WARMUP]) for static in graphed.current.inputs)
    assert any(seen[-1] is static for static in graphed.current.inputs)  # replayed: from the memory of the capture


def test_no_more_than_a_few_kinds(emulated):
    graphed = GraphedFunction(lambda x: x.sum().double(), torch.device("cpu"))
    for n in range(1, graph.MOST + 3):
        for _ in range(graph.WARMUP + 1):
            assert graphed(torch.ones(n)) == n
    assert Emulated.captures == graph.MOST


@pytest.mark.parametrize("options", [{}, {"aa": "rand-m9-mstd0.5-inc1", "reprob": 0.5, "mixup": 0.8, "cutmix": 1.0}, None])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_augmentation_gives_the_same_batches(options, device, monkeypatch):
    """In two epochs, the short last batch included, whose statistics and draws lie elsewhere in memory each time."""

    class Pure:
        def __init__(self, function, result):
            self.function, self.result = function, result

        def replay(self):
            for static, value in zip(self.result, self.function(), strict=True):
                static.copy_(value)

    if device == "cpu":
        monkeypatch.setattr(graph, "capture", lambda function, device: ((g := Pure(function, function())), g.result))
    images = torch.randint(256, (22, 3, 16, 16), dtype=torch.uint8)
    split = Split(images, torch.arange(22) % 5).to(device)
    augment = None if options is None else Augment(**options)
    carry = GraphedFunction(batches.carry_out, torch.device(device))

    def epochs(carry):
        for epoch in range(6):
            stream = batches.epoch(
                split, batch_size=8, seed=1, epoch=epoch, augment=augment, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4),
                num_classes=5, device=device, carry=carry,
            )  # fmt: skip
            yield from ((x.clone(), y.clone()) for x, y in stream)

    pairs = zip(epochs(None), epochs(carry), strict=True)
    assert all(torch.equal(x, found) and torch.equal(y, labels) for (x, y), (found, labels) in pairs)
    assert len(carry.kinds) == (0 if augment is None else 2) and all(kind.graph for kind in carry.kinds.values())


def test_wanted(monkeypatch):
    assert graph.wanted(torch.device("cuda:1")) and not graph.wanted(torch.device("cpu"))
    monkeypatch.setenv("CCT_CUDA_GRAPH", "0")
    assert not graph.wanted(torch.device("cuda"))
