"""Training: configuration, loop, schedules, losses, and runs that survive whatever stops them.

    from cct.training.config import resolve
    from cct.training.loop import train

    result = train(resolve({"data": "digits", "epochs": 5}))

The modules are imported one by one: `cct --help` needs the configuration, not PyTorch.
"""
