"""CUDA graphs of inference: what is checked and copied, with the graph itself emulated where there is no GPU."""

import importlib

import pytest
import torch

import cct_kernels
from cct.models import create_model
from cct_kernels import graphed

module = importlib.import_module("cct_kernels.graphed")  # the package's name of it is the function


class Replayed:
    """Stands in for a CUDA graph: runs the function again, into the tensors that the capture returned."""

    def __init__(self, function, result):
        self.function, self.result = function, result
        self.casts_were_cached = torch.is_autocast_cache_enabled()

    def replay(self):
        with torch.no_grad():
            new = self.function()
        pairs = [(self.result, new)] if isinstance(new, torch.Tensor) else zip(self.result, new, strict=True)
        for static, value in pairs:
            static.copy_(value)


@pytest.fixture
def emulated(monkeypatch):
    """Graphs of CPU models."""

    def capture(function, device):
        result = function()
        return Replayed(function, result), result

    monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(module, "capture", capture)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model("cct_2_3x2", img_size=16).eval()


@torch.no_grad()
def inferred(model, x):
    """What a graph captures; with gradients other kernels run, whose sums may round differently."""
    return model(x)


def test_gives_what_the_model_gives(emulated, model):
    x, y = torch.randn(2, 2, 3, 16, 16)
    call = graphed(model, x)
    first, second = call(x), call(y)
    assert torch.equal(first, inferred(model, x))  # the second does not overwrite it
    assert torch.equal(second, inferred(model, y))
    assert not first.requires_grad and call.inputs[0] is not x
    call.inputs[0].copy_(x)
    call.replay()
    assert torch.equal(call.output, first)


def test_sees_parameters_change_in_place(emulated, model):
    x = torch.randn(1, 3, 16, 16)
    call = graphed(model, x)
    before = call(x)
    model.load_state_dict({name: t + 0.01 for name, t in model.state_dict().items()})
    assert torch.equal(call(x), inferred(model, x)) and not torch.equal(call(x), before)
    model.classifier.fc.weight = torch.nn.Parameter(model.classifier.fc.weight.detach().clone())
    with pytest.raises(ValueError, match="graphed: weight of the model has moved to other memory since the graph was made"):
        call(x)


def test_autocast_is_that_of_the_capture_and_weights_are_not_cached(emulated, model):
    x = torch.randn(1, 3, 16, 16)
    model.fused = False
    with torch.autocast("cpu", torch.bfloat16):
        model(x)  # fills the cache of casts
        call = graphed(model, x)
        assert torch.is_autocast_cache_enabled() and not call._graph.casts_were_cached
    assert call.output.dtype == torch.bfloat16


def test_several_inputs_and_outputs(emulated):
    class Pair(torch.nn.Linear):
        def forward(self, x, mask):
            return super().forward(x), mask.sum()

    pair = Pair(3, 2).eval()
    x, mask = torch.randn(4, 3), torch.tensor([True, False])
    out, count = graphed(pair, (x, mask))(x, ~mask | True)
    assert torch.equal(out, pair(x, mask)[0]) and count == 2


WRONG = [
    ((torch.zeros(2, 3, 16, 16),), r"input 0 has shape \(2, 3, 16, 16\); expected \(1, 3, 16, 16\)"),
    ((torch.zeros(1, 3, 16, 16).double(),), "input 0 has dtype torch.float64; expected torch.float32"),
    ((torch.zeros(1, 3, 16, 16, device="meta"),), "input 0 is on meta; expected cpu"),
    (("cat.png",), "input 0 is str; expected a tensor"),
    ((), "got 0 inputs; expected 1"),
]


@pytest.mark.parametrize(("inputs", "message"), WRONG, ids=["shape", "dtype", "device", "type", "number"])
def test_wrong_inputs(emulated, model, inputs, message):
    call = graphed(model, torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="graphed: " + message):
        call(*inputs)
    model.train()
    with pytest.raises(ValueError, match="the model is in training mode now"):
        call(torch.zeros(1, 3, 16, 16))


def test_what_cannot_be_graphed(model, monkeypatch):
    x = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"the model is on cpu; expected a CUDA device.*call the model itself under torch.inf"):
        graphed(model, x)
    with pytest.raises(ValueError, match=r"model is function; expected a torch.nn.Module"):
        graphed(lambda x: x, x)
    with pytest.raises(ValueError, match="the model is on no device: it has no parameters; expected one GPU"):
        graphed(torch.nn.ReLU(), x)
    split = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match="the model is on cpu, meta; expected one GPU"):
        graphed(split, x)
    monkeypatch.setattr(module, "DEVICE", "cpu")
    with pytest.raises(ValueError, match=r"in training mode; expected evaluation mode, call model.eval\(\)"):
        graphed(model.train(), x)
    model.eval()
    with pytest.raises(ValueError, match="example is dict; expected a tensor or a tuple of tensors"):
        graphed(model, {"x": x})
    with pytest.raises(ValueError, match="input 0 of the example is on meta; expected cpu, the device of the model"):
        graphed(model, x.to("meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_on_a_gpu(model):
    """The real thing: fresh inputs, changed parameters, and dropout masks that differ from replay to replay."""
    model = model.cuda()
    x, y = torch.randn(2, 2, 3, 16, 16, device="cuda")
    call = graphed(model, x)
    with torch.no_grad():
        assert torch.equal(call(y), model(y)) and torch.equal(call(x), model(x))
        model.classifier.fc.bias += 1
        assert torch.equal(call(x), model(x))

    class Noisy(torch.nn.Linear):
        def forward(self, x):
            return cct_kernels.layernorm_mlp(
                x, torch.ones_like(self.bias), self.bias, self.weight, self.bias, self.weight, self.bias, dropout=0.5
            )

    noisy = Noisy(32, 32).cuda().eval()
    tokens = torch.randn(2, 8, 32, device="cuda")
    call = graphed(noisy, tokens)
    torch.manual_seed(3)
    first, second = call(tokens), call(tokens)
    torch.manual_seed(3)
    assert not torch.equal(first, second) and torch.equal(call(tokens), first)
    with torch.no_grad():
        assert torch.equal(noisy(tokens), second)  # the generator goes on as if the graph were not there
