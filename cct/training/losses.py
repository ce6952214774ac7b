"""Cross-entropy against labels or soft targets."""

import torch
import torch.nn.functional as F


def cross_entropy(logits, targets, smoothing=0.0):
    """Mean over the batch of -sum_k t_k log softmax(logits)_k.

    logits: (B, K), computed in float32 or wider. targets: int64 labels (B,), smoothed to 1 - s + s / K on the label and s / K
    elsewhere (s = smoothing), or probabilities (B, K) from mixing or a teacher, taken as they are.
    Source: Szegedy et al., "Rethinking the Inception Architecture", section 7.
    """
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if targets.is_floating_point():
        return F.cross_entropy(logits, targets.to(logits.dtype))
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)
