"""What a training step minimises. A second loss or a teacher is another class of this form, chosen in `setup.prepare`."""

from .losses import cross_entropy


class Classification:
    """Cross-entropy of the logits against labels or soft targets, and how often the largest logit is right.

    An objective is called with the model (under autocast and, with several workers, data-parallel), a batch of images, its
    targets and the epoch, a tensor that counts from 0. It returns one tensor without dimensions for each of `names`, each a
    mean over the images of the batch; the first, "loss", is what the gradient is taken of. They become the columns train_NAME
    of metrics.csv. What it needs beside the model, such as a teacher, is made in its constructor and is not trained. On a GPU
    the calls are replayed from a CUDA graph: what changes from step to step must come from its arguments.
    """

    names = ("loss", "top1")

    def __init__(self, smoothing=0.0):
        self.smoothing = smoothing

    def __call__(self, model, images, targets, epoch):
        """targets: int64 labels (B,), or from mixup and cutmix float32 (B, K), where the class of the largest share counts."""
        logits = model(images)
        labels = targets.argmax(1) if targets.is_floating_point() else targets
        hits = logits.detach().argmax(1) == labels
        return cross_entropy(logits, targets, self.smoothing), hits.double().mean()
