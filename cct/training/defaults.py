"""What `cct train --data NAME` uses where neither file nor flag says otherwise: short schedules that end well on a CPU.

The recipes of the paper are longer; they are YAML files of their own and state every value.
"""

_SHORT = {"sched": "cosine_per_step", "min_lr": 1e-5, "weight_decay": 0.05, "smoothing": 0.1}

DEFAULTS = {
    "digits": {**_SHORT, "epochs": 30, "batch_size": 32, "lr": 1e-3},
    "mnist": {**_SHORT, "epochs": 10, "batch_size": 128, "lr": 2e-3},
    "fashion_mnist": {**_SHORT, "epochs": 20, "batch_size": 128, "lr": 2e-3},
    "cifar10": {**_SHORT, "epochs": 30, "batch_size": 128, "lr": 2e-3},
    "cifar100": {**_SHORT, "epochs": 30, "batch_size": 128, "lr": 2e-3},
    "svhn": {**_SHORT, "epochs": 20, "batch_size": 128, "lr": 2e-3},
    "flowers102": {**_SHORT, "epochs": 100, "batch_size": 64, "lr": 1e-3},
    "flowers102_resplit": {**_SHORT, "epochs": 100, "batch_size": 64, "lr": 1e-3},
    "pets": {**_SHORT, "epochs": 100, "batch_size": 64, "lr": 1e-3},
    "imagenet": {**_SHORT, "epochs": 100, "batch_size": 256, "lr": 1e-3},
    "folder": {**_SHORT, "epochs": 50, "batch_size": 64, "lr": 1e-3},
}
DATA_SETS = tuple(DEFAULTS)
OF_FILES = ("flowers102", "flowers102_resplit", "pets", "imagenet", "folder")  # image files; the others are arrays
