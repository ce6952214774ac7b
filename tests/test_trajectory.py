"""Training with the fused ops is training with PyTorch: the same losses to rounding, the same distribution under dropout, and
masks that are the same in both passes."""

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from cct.models import CCT
from cct_kernels import layernorm_attention, layernorm_mlp
from cct_kernels.dispatch import machine_why_not

pytestmark = pytest.mark.skipif(machine_why_not("cpu") is not None, reason=str(machine_why_not("cpu")))
STEPS = 50
SMALL = {
    "img_size": 12,
    "kernel_size": 3,
    "n_conv_layers": 2,
    "num_layers": 2,
    "num_heads": 2,
    "mlp_ratio": 1,
    "num_classes": 4,
}


def train(fused, *, weights=0, seed=0, dim=128, dtype=torch.float32, autocast=False, batch=8, lr=0.005, steps=STEPS, **rates):
    """The losses of `steps` steps of momentum SGD on random images with labels that can be learned from them."""
    torch.manual_seed(weights)  # the initial weights and data; `seed` draws the masks
    rates = {"dropout": 0.0, "attention_dropout": 0.0, "stochastic_depth": 0.0} | rates
    model = CCT(**SMALL, embedding_dim=dim, fused=fused, **rates).to(dtype).train()
    images = torch.randn(4 * batch, 3, 12, 12)
    labels = images.mean((2, 3)).argmax(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    torch.manual_seed(seed + 1)
    losses = []
    for step in range(steps):
        part = slice(step % 4 * batch, (step % 4 + 1) * batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(images[part].to(dtype))
        loss = F.cross_entropy(logits.to(dtype), labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize(("autocast", "eps"), [(False, 2**-23), (True, 2**-8)], ids=["float32", "bfloat16"])
def test_fifty_steps_without_dropout(autocast, eps):
    """Rounding of a step is carried on by all later ones, and training amplifies it: how much is a matter of the weights and
    not of who rounds. So the yardstick is the largest error of plain PyTorch on the same trajectories, both against float64.
    One pixel that loses its window by rounding can make it fifty times as large (1 of 12 runs): hence the median of three
    runs. In float32 one gradient that is wrong by 1 % is past the bound, five times and more."""
    errors = []
    for weights in range(3):
        exact = train(False, weights=weights, dtype=torch.float64)
        assert exact[-4:].mean() < 0.7 * exact[:4].mean()  # it learns
        pair = [train(fused, weights=weights, autocast=autocast) - exact for fused in (False, "strict")]
        errors.append(torch.stack(pair).abs().amax(1) / exact.max())
    plain, fused = torch.stack(errors).median(0).values.tolist()
    assert fused <= (bound := 8 * plain + 4 * eps), f"{fused / bound:.2f} times the bound"
    assert bound < 160 * eps  # so the losses do agree to rounding


RATES = {"dropout": 0.2, "attention_dropout": 0.3, "stochastic_depth": 0.3}


def mean_losses(fused, runs, steps=STEPS, **rates):
    """(2, runs): mean losses of steps 1-25 and 26-50 of runs that differ by their masks alone."""
    losses = [train(fused, seed=s, dim=16, lr=0.05, steps=steps, **RATES | rates) for s in range(runs)]
    return torch.stack([half.mean(1) for half in torch.stack(losses).split(STEPS // 2, 1)])


def test_fifty_steps_with_dropout():
    """The losses under dropout have one distribution, fused or not: Kolmogorov-Smirnov, two tests at a false-alarm rate of
    1e-5 each, as the same seeds give other runs on other CPUs. Twice the rates give 2e-6; 1e-3 leaves them room as well."""
    plain, fused = mean_losses(False, 16), mean_losses("strict", 16)
    wrong = mean_losses("strict", 16, STEPS // 2, dropout=0.4, attention_dropout=0.6)
    for a, b in zip(plain, fused, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-5
    assert stats.ks_2samp(plain[0], wrong[0]).pvalue < 1e-3


ROWS = 14  # tokens whose mask bits fit into one sum of powers of two, exact in float32
POWERS = 2.0 ** torch.arange(ROWS)[:, None]
SEED = torch.tensor([987654321012345, 3])


def bits(sums):
    """(columns,) sums of 2^row over the rows that are kept -> bool (rows, columns)."""
    return (sums.long() >> torch.arange(ROWS)[:, None] & 1).bool()


@pytest.mark.parametrize("site", ["hidden", "output"])
def test_mlp_masks_of_both_passes(isa, site):
    """With p = 1/2 the kept values are doubled, so all sums are exact. A bias that adds 8 to each element shows the mask in the
    output, and in its gradient sum over rows of 2^row * mask."""
    C = 70
    x, one, none = torch.randn(2, ROWS // 2, C), torch.ones(C), torch.zeros(C, C)
    b1, b2 = torch.full((C,), 8.0, requires_grad=True), torch.full((C,), 8.0, requires_grad=True)
    y = layernorm_mlp(x, one, None, none, None, none, None)
    weights = (none, b1, 2 * torch.eye(C), None) if site == "hidden" else (none, None, none, b2)
    out = layernorm_mlp(x, one, None, *weights, dropout=0.5, seed=SEED)
    kept = (out - y).detach().view(ROWS, C)
    if site == "hidden":  # the output mask lies on top: what it drops, backward may not show either
        output = layernorm_mlp(x, one, None, none, None, none, torch.full((C,), 8.0), dropout=0.5, seed=SEED) - y
        assert set(kept[(output == 0).view(ROWS, C)].tolist()) == {0.0}
    (gradient,) = torch.autograd.grad(out, b1 if site == "hidden" else b2, POWERS.expand(ROWS, C).reshape(x.shape))
    scale = 8.0 if site == "hidden" else 2.0  # 2 and 2 of the masks, 2 of fc2
    assert torch.equal(bits(gradient / scale), kept > 4)
    assert 0.1 < (kept > 4).float().mean() < 0.6


def test_projection_masks_of_both_passes(isa):
    C = 70
    x, bias = torch.randn(2, ROWS // 2, C), torch.full((C,), 8.0, requires_grad=True)
    weights = torch.ones(C), None, torch.zeros(3 * C, C), torch.zeros(C, C), bias
    out = layernorm_attention(x, *weights, num_heads=2, dropout=0.5, seed=SEED)
    (gradient,) = torch.autograd.grad(out, bias, POWERS.expand(ROWS, C).reshape(x.shape))
    kept = (out - x).detach().view(ROWS, C) > 4
    assert torch.equal(bits(gradient / 2), kept)
    assert 0.3 < kept.float().mean() < 0.7


def test_attention_masks_of_both_passes(isa):
    """One image, one head, token j = e_j: LN(x_j) = k (e_j - 1/C). Wq = 0 makes every weight 1/N; Wk = Wv = Wproj = I. Channel
    N belongs to no token: subtracting it takes the 1/C away, and what remains shows the N x N mask

        in the output             o_ij - o_iN               = k m_ij 2/N
        in dV, for dout = I       dWv_ij - dWv_iN           = k m_ij 2/N
        in dS, for dout_ic = 1    the same of dWq, times k  = k^2 (2 m_ij d - delta_i) / (N sqrt(C)),  d = dO v
    """
    N, C = 70, 72
    x, eye = torch.eye(N, C)[None], torch.eye(C)
    qkv = torch.cat([torch.zeros(C, C), eye, eye]).requires_grad_()
    k = F.layer_norm(x, (C,))[0, 0, 0] - F.layer_norm(x, (C,))[0, 0, N]

    def rows(matrix):  # without the part that all channels share
        return (matrix[:, :N] - matrix[:, N:][:, :1]) * N / (2 * k)

    out = layernorm_attention(x, torch.ones(C), None, qkv, eye, num_heads=1, attn_dropout=0.5, seed=SEED)
    mask = rows((out - x)[0].detach())
    kept = mask > 0.5
    torch.testing.assert_close(mask, kept.float(), atol=1e-4, rtol=0)
    assert 0.45 < kept.float().mean() < 0.55

    (gradient,) = torch.autograd.grad(out, qkv, torch.eye(N, C)[None], retain_graph=True)
    torch.testing.assert_close(rows(gradient[2 * C :])[:N], kept.float(), atol=1e-4, rtol=0)

    dout = (torch.arange(C) < N).float().expand(1, N, C)
    (gradient,) = torch.autograd.grad(out, qkv, dout)
    d = k * (1 - N / C)  # of dO v for every pair
    dq = gradient[:C] - gradient[N : N + 1]  # by key, without the channel of none
    scores = (dq[:N, :N] - dq[:N, N:][:, :1]).T * N * C**0.5 / (k * k * 2 * d)
    delta = kept.float().mean(1, keepdim=True)
    torch.testing.assert_close(scores + delta, kept.float(), atol=1e-3, rtol=0)
