"""Loss and accuracy of a model over a split."""

import torch

from cct.data import batches

from .losses import cross_entropy


def autocast(device, amp):
    """The autocast region of `--amp bf16|off` on this device."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=amp == "bf16")


@torch.inference_mode()
def evaluate(model, split, *, mean, std, batch_size=256, device="cpu", amp="off"):
    """Cross-entropy (nats, no smoothing) and accuracies (fractions of 1) of `model` in evaluation mode over `split`.

    Returns {"loss", "top1", "top5", "images"}; "top5" is None up to five classes. The mode of the model is put back.
    """
    training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    top1, top5, images = torch.zeros_like(loss), torch.zeros_like(loss), 0
    classes = 0
    for pixels, labels in batches.evaluation(split, batch_size=batch_size, mean=mean, std=std, device=device):
        with autocast(device, amp):
            logits = model(pixels)
        classes = logits.shape[1]
        loss += cross_entropy(logits, labels).double() * len(labels)
        hits = logits.topk(min(5, classes), dim=1).indices == labels[:, None]
        top1 += hits[:, 0].sum()
        top5 += hits.sum()
        images += len(labels)
    model.train(training)
    values = {"loss": loss.item() / images, "top1": top1.item() / images}
    return {**values, "top5": top5.item() / images if classes > 5 else None, "images": images}
