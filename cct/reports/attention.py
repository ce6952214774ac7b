"""What a model looks at: SeqPool weights and attention roll-out, drawn over the image as one PNG."""

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cct.models.checkpoints import write_atomically

from .curves import FAINT, INK

MUTED, BAR, BAR_FAINT = "#666666", "#0072B2", "#B8CFDF"
HEAT = "inferno"  # even steps of brightness, also in grey and with every kind of colour vision
PANEL, BARS = 2.5, 3.0  # inches: the side of an image; the width of the probabilities


def rollout(maps):
    """Attention roll-out: R = A_L ... A_1 with A_l = (mean over heads of map_l + I) / 2, rows summing to 1.

    maps: a list of (B, nh, N, N), first block first, as `attention_maps` gives. Returns (B, N, N) float32: how much of each
    input token (column) is in each output token (row), when the residual connection counts as much as the attention.
    Source: Abnar and Zuidema, Quantifying Attention Flow in Transformers, ACL 2020, section 3.
    """
    flow = None
    for attention in maps:
        mean = attention.float().mean(1)
        step = (mean + torch.eye(mean.shape[-1], device=mean.device)) / 2
        flow = step if flow is None else step @ flow
    return flow


@torch.inference_mode()
def heat_maps(model, images):
    """{name: (B, h, w)} over the token grid of a vision model in evaluation mode; each map of an image sums to 1.

    SeqPool models: "SeqPool weights", and "Attention roll-out" from the pooled output: those weights times `rollout`. Models
    with a class token: its row of the roll-out, and its attention in the last block (mean over heads), without itself.
    """
    maps = model.attention_maps(images)
    if model.classifier.seq_pool:
        weights = model.seqpool_weights(images).float()
        rows = {"SeqPool weights": weights, "Attention roll-out": torch.einsum("bn,bnm->bm", weights, rollout(maps))}
    else:
        last = maps[-1].float().mean(1)
        rows = {"Class token, last block": last[:, 0, 1:], "Attention roll-out": rollout(maps)[:, 0, 1:]}
    return {name: (row / row.sum(1, keepdim=True)).unflatten(1, model.grid_size).cpu() for name, row in rows.items()}


def draw_explanation(path, pixels, heats, classes, title="", note=""):
    """Draw one image: itself, each heat map over it, and the most probable classes, to the PNG `path`.

    pixels: (H, W) or (H, W, 3) uint8, the part of the image that the model sees. heats: {name: (h, w) summing to 1}.
    classes: [(name, probability)], the most probable first. note: said below the title.
    """
    height = PANEL * min(max(pixels.shape[0] / pixels.shape[1], 0.6), 1.6)
    columns = 1 + len(heats)
    figure = Figure(figsize=(columns * (PANEL + 0.35) + BARS, height + 1.15), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06, rect=(0, 0, 1, 1 - 0.52 / (height + 1.15)))
    axes = figure.subplots(1, columns + 1, width_ratios=[PANEL] * columns + [BARS])
    _image(axes[0], pixels, "Image")
    for panel, (name, heat) in zip(axes[1:], heats.items(), strict=False):
        _heat(figure, panel, pixels, name, heat)
    _bars(axes[-1], classes)
    top = 1 - 0.13 / (height + 1.15)
    figure.text(0.012, top, title, ha="left", va="top", fontsize=12, fontweight="bold", color=INK)
    figure.text(0.012, top - 0.22 / (height + 1.15), note, ha="left", va="top", fontsize=9, color=MUTED)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def _image(axes, pixels, title, alpha=1.0):
    grey = {"cmap": "gray", "vmin": 0, "vmax": 255} if pixels.ndim == 2 else {}
    axes.imshow(pixels, interpolation="nearest", alpha=alpha, **grey)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def _heat(figure, axes, pixels, name, heat):
    grey = pixels if pixels.ndim == 2 else (pixels @ [0.299, 0.587, 0.114]).astype("uint8")
    _image(axes, grey, name)
    scaled = heat.numpy() * heat.numel()  # 1: what this token would get if all counted the same
    extent = (-0.5, pixels.shape[1] - 0.5, pixels.shape[0] - 0.5, -0.5)
    top = max(2.0, scaled.max().item())
    shown = axes.imshow(scaled, cmap=HEAT, vmin=0, vmax=top, alpha=0.72, extent=extent, interpolation="nearest")
    bar = figure.colorbar(shown, ax=axes, location="bottom", shrink=0.94, aspect=26, pad=0.02)
    bar.set_ticks([0, 1, top], labels=["0", "1 = even share", f"{top:.1f}" if top < 10 else f"{top:.0f}"])
    labels = bar.ax.get_xticklabels()
    labels[0].set_ha("left")
    labels[-1].set_ha("right")
    if 1 / top < 0.25:
        labels[1].set_ha("left")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, labelsize=8, colors=MUTED)


def _bars(axes, classes):
    values = [100 * probability for _, probability in classes]
    colors = [BAR] + [BAR_FAINT] * (len(values) - 1)
    axes.barh(range(len(values)), values, height=0.34, color=colors)
    for y, ((name, _), value) in enumerate(zip(classes, values, strict=True)):
        weight = "bold" if y == 0 else "normal"
        name = name if len(name) <= 26 else name[:25] + "…"
        axes.text(0, y - 0.24, name, fontsize=9.5, color=INK, fontweight=weight, va="bottom")
        axes.text(100, y - 0.24, f"{value:.2f} %", fontsize=9.5, color=INK, fontweight=weight, va="bottom", ha="right")
    axes.set_xlim(0, 100)
    axes.set_ylim(max(len(values), 3) - 0.5, -0.75)
    axes.xaxis.set_major_locator(MaxNLocator(2))
    axes.set_title("Prediction", loc="left", fontsize=10, color=INK)
    axes.set_yticks([])
    axes.tick_params(colors=MUTED, labelsize=8, length=2)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
