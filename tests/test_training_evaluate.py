"""Evaluation against the same numbers worked out in one batch."""

import pytest
import torch
import torch.nn.functional as F

from cct.data import Split
from cct.training.evaluate import evaluate

MEAN, STD = (0.5,), (0.25,)


def model(classes):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(16, classes))


@pytest.mark.parametrize(("classes", "batch_size"), [(7, 4), (7, 256), (5, 3)])
def test_evaluate(classes, batch_size):
    split = Split(torch.randint(0, 256, (22, 1, 4, 4), dtype=torch.uint8), torch.arange(22) % classes)
    net = model(classes).train()
    result = evaluate(net, split, mean=MEAN, std=STD, batch_size=batch_size)
    assert net.training  # as it was
    logits = net.eval()((split.images / 255 - 0.5) / 0.25)
    order = logits.argsort(1, descending=True)
    assert result["loss"] == pytest.approx(F.cross_entropy(logits, split.labels).item(), rel=1e-5)
    assert result["top1"] == pytest.approx((order[:, 0] == split.labels).float().mean().item())
    top5 = (order[:, :5] == split.labels[:, None]).any(1).float().mean().item()
    assert result["top5"] == (pytest.approx(top5) if classes > 5 else None)
    assert result["images"] == 22


def test_bf16_autocast():
    split = Split(torch.randint(0, 256, (8, 1, 4, 4), dtype=torch.uint8), torch.arange(8) % 3)
    seen = []
    net = model(3)
    net.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    evaluate(net, split, mean=MEAN, std=STD, amp="bf16")
    evaluate(net, split, mean=MEAN, std=STD)
    assert seen == [torch.bfloat16, torch.float32]
