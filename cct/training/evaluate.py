"""Loss and accuracy of a model over a split."""

import torch

from cct.data import batches

from .distributed import Workers
from .losses import cross_entropy


def autocast(device, amp):
    """The autocast region of `--amp bf16|off` on this device."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=amp == "bf16")


@torch.inference_mode()
def evaluate(model, split, *, mean, std, batch_size=256, device="cpu", amp="off", tta="none", workers=None):
    """Cross-entropy (nats, no smoothing) and accuracies (fractions of 1) of `model` in evaluation mode over `split`.

    tta="flip": the logits are the mean of those of an image and of its mirror image. workers: the `Workers` that share the
    images, each with the whole split; all of them return the result for all images.

    Returns {"loss", "top1", "top5", "images"}; "top5" is None up to five classes. The mode of the model is put back.
    """
    if workers is None or len(split) < workers.count:
        workers = Workers()
    training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, top-1, top-5, images
    own = split.subset(workers.span(len(split)))
    for pixels, labels in batches.evaluation(own, batch_size=batch_size, mean=mean, std=std, device=device):
        with autocast(device, amp):
            logits = model(pixels)
            if tta == "flip":
                logits = (logits + model(pixels.flip(3))) / 2
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        loss = cross_entropy(logits, labels).double() * len(labels)
        sums += torch.stack([loss, hits[:, 0].sum(), hits.sum(), torch.full_like(loss, len(labels))])
    model.train(training)
    loss, top1, top5, images = workers.sum_(sums).tolist()
    values = {"loss": loss / images, "top1": top1 / images}
    return {**values, "top5": top5 / images if logits.shape[1] > 5 else None, "images": int(images)}
