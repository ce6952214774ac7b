"""Learning rates of every epoch against the ones the official scripts use."""

import math

import numpy as np
import pytest

from cct.training.config import Config
from cct.training.schedules import learning_rate, total_epochs, warmup_epochs

COSINE = {"sched": "cosine", "min_lr": 1e-5, "cooldown_epochs": 10, "warmup_epochs": 10, "epochs": 300}
CASES = {
    "v1_lr5e-4_w5_e200": {"sched": "cosine_v1", "lr": 5e-4, "warmup_epochs": 5, "epochs": 200},
    "v1_lr5e-4_w10_e200": {"sched": "cosine_v1", "lr": 5e-4, "warmup_epochs": 10, "epochs": 200},
    "cifar10_300": {**COSINE, "lr": 5.5e-4, "warmup_lr": 1e-5},
    "cifar100_300": {**COSINE, "lr": 6e-4, "warmup_lr": 1e-6},
    "cifar10_1500": {**COSINE, "lr": 5e-4, "warmup_lr": 1e-5, "epochs": 1500},
    "imagenet_300": {**COSINE, "lr": 5e-4, "warmup_lr": 1e-6},
    "imagenet384_ft": {"lr": 1e-5, "min_lr": 0, "warmup_lr": 0, "warmup_epochs": 0, "epochs": 30, "cooldown_epochs": 10},
    "flowers_ft_as_written_step": {"sched": "step", "lr": 5e-5, "warmup_epochs": 10, "epochs": 300, "cooldown_epochs": 10},
    "flowers_ft_if_cosine": {**COSINE, "lr": 5e-5, "min_lr": 1e-8, "warmup_lr": 1e-6},
}


@pytest.mark.parametrize("name", CASES)
def test_official_schedules(fixtures, name):
    expected = np.load(fixtures / "lr_schedules.npz")[name]
    config = Config(**CASES[name])
    assert total_epochs(config) == len(expected)
    np.testing.assert_allclose([learning_rate(config, e) for e in range(len(expected))], expected, rtol=1e-12)


@pytest.mark.parametrize("sched", ["cosine", "cosine_v1", "step", "constant"])
def test_per_epoch_schedules_stand_still_inside_an_epoch(sched):
    config = Config(sched=sched, epochs=20, warmup_epochs=3)
    for e in range(20):
        assert learning_rate(config, e + 0.99) == learning_rate(config, e)


def test_cosine_per_step():
    config = Config(sched="cosine_per_step", lr=1.0, min_lr=0.1, warmup_lr=0.0, epochs=10, warmup_epochs=2)
    assert learning_rate(config, 0.5) == pytest.approx(0.25)
    assert learning_rate(config, 2) == pytest.approx(1.0)
    assert learning_rate(config, 6) == pytest.approx(0.55)
    assert learning_rate(config, 4) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 4)))
    assert learning_rate(config, 10) == learning_rate(config, 12) == pytest.approx(0.1)


def test_one_cycle():
    config = Config(sched="one_cycle", lr=1.0, min_lr=0.1, warmup_lr=0.2, epochs=10, warmup_epochs=2)
    assert [learning_rate(config, e) for e in (0, 0.5, 1, 2, 6, 8, 10)] == pytest.approx([0.2, 0.4, 0.6, 1.0, 0.55, 0.325, 0.1])


def test_warmup_and_constant():
    assert [warmup_epochs(Config(epochs=n)) for n in (1, 5, 30, 300)] == [1, 1, 3, 10]
    assert learning_rate(Config(sched="cosine_per_step", epochs=1, warmup_epochs=1), 1.0) == 0.0
    assert learning_rate(Config(sched="constant", lr=0.3, warmup_epochs=0), 29) == 0.3
