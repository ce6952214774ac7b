"""Cross-entropy against the stored values and gradients, and in its edge cases."""

import numpy as np
import torch

from cct.training.losses import cross_entropy


def test_label_smoothing(fixtures):
    stored = np.load(fixtures / "losses.npz")
    logits = torch.from_numpy(stored["logits"]).requires_grad_()
    loss = cross_entropy(logits, torch.from_numpy(stored["targets"]), 0.1)
    loss.backward()
    np.testing.assert_allclose(loss.item(), stored["ls_ce_0.1"], rtol=1e-12)
    np.testing.assert_allclose(logits.grad, stored["ls_ce_0.1_grad"], rtol=1e-12, atol=1e-15)


def test_soft_targets_are_not_smoothed_again(fixtures):
    stored = np.load(fixtures / "losses.npz")
    logits = torch.from_numpy(stored["logits"]).requires_grad_()
    loss = cross_entropy(logits, torch.from_numpy(stored["mixup_target_lam0.3_s0.1"]), 0.1)
    loss.backward()
    np.testing.assert_allclose(loss.item(), stored["soft_ce"], rtol=1e-12)
    np.testing.assert_allclose(logits.grad, stored["soft_ce_grad"], rtol=1e-12, atol=1e-15)


def test_smoothing_by_hand():
    logits, labels = torch.randn(5, 7, dtype=torch.float64), torch.tensor([0, 6, 3, 3, 1])
    log_p = logits.log_softmax(1)
    expected = -(0.8 * log_p[torch.arange(5), labels] + 0.2 * log_p.mean(1)).mean()
    torch.testing.assert_close(cross_entropy(logits, labels, 0.2), expected)


def test_bfloat16_logits_are_reduced_in_float32():
    logits, labels = torch.randn(4, 10).bfloat16(), torch.tensor([1, 2, 3, 4])
    loss = cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy(logits.float(), labels), rtol=0, atol=0)
