"""Learning rate of an epoch. Epochs e = 0, 1, ...; E = epochs, w = warmup_epochs.

warm-up, e < w, all but cosine_v1:   warmup_lr + e (lr - warmup_lr) / w
cosine           min_lr + (lr - min_lr) (1 + cos(pi e / E)) / 2; its clock runs during the warm-up, as in timm; e >= E: min_lr
cosine_per_step  the same with the clock starting after the warm-up, (e - w) / (E - w), and e moving with every step
cosine_v1        e < w: lr / (w - e); then lr (1 + cos(pi (e - w) / (E - w))) / 2: the first official script
step             lr decay_rate^floor(e / decay_epochs)
one_cycle        the warm-up, then straight down: lr + (min_lr - lr) (e - w) / (E - w); e moves with every step
constant         lr
"""

import math

PER_STEP = ("cosine_per_step", "one_cycle")  # the others stand still inside an epoch


def warmup_epochs(config):
    """Epochs of warm-up: as configured, or a tenth of the epochs rounded up, at most 10."""
    if config.warmup_epochs is not None:
        return config.warmup_epochs
    return min(10, math.ceil(config.epochs / 10))


def total_epochs(config):
    """Epochs that the run takes; the cosine schedules go on for cooldown_epochs at min_lr."""
    return config.epochs + (config.cooldown_epochs if config.sched in ("cosine", "cosine_per_step") else 0)


def learning_rate(config, epoch):
    """Learning rate at `epoch`, counted from 0; a fraction of an epoch matters to the schedules in PER_STEP only."""
    lr, E, w = config.lr, config.epochs, warmup_epochs(config)
    e = epoch if config.sched in PER_STEP else math.floor(epoch)
    if e < w:
        if config.sched == "cosine_v1":
            return lr / (w - e)
        return config.warmup_lr + e * (lr - config.warmup_lr) / w
    if config.sched == "cosine":
        return _cosine(lr, config.min_lr, e / E)
    if config.sched == "cosine_per_step":
        return _cosine(lr, config.min_lr, (e - w) / (E - w) if w < E else 1.0)
    if config.sched == "cosine_v1":
        return _cosine(lr, 0.0, (e - w) / (E - w))
    if config.sched == "one_cycle":
        return lr + (config.min_lr - lr) * min(1.0, (e - w) / (E - w) if w < E else 1.0)
    if config.sched == "step":
        return lr * config.decay_rate ** (e // config.decay_epochs)
    return lr


def _cosine(lr, min_lr, progress):
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * min(progress, 1.0)))
