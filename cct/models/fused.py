"""What `fused=` means: True takes the fastest backend that runs each op, False plain PyTorch, "strict" never plain PyTorch."""

import functools
import logging

import torch

from cct_kernels import dispatch

BACKENDS = {True: None, False: "reference", "strict": "fused"}
_log = logging.getLogger("cct")


def check(fused):
    if not isinstance(fused, (bool, str)) or fused not in BACKENDS:
        raise ValueError(f"fused is {fused!r}; expected True, False or 'strict'")
    return fused


def backend(fused, device, dtype):
    """The `backend` argument for the ops. Exports take plain PyTorch, so that the graph holds standard operators only."""
    if dispatch.exporting():
        return "reference"
    if fused is True and not torch.compiler.is_compiling():
        announce(device, dtype)
    return BACKENDS[fused]


@functools.cache
def announce(device, dtype):
    """Say once per device type and dtype, in one line, which ops run in plain PyTorch and why.

    Through logging and not warnings: it is one line without a source excerpt, `-W error` does not turn a working fallback
    into a failure, and a program silences it by level.
    """
    if plain := plain_ops(device, dtype):
        text = "; ".join(f"{', '.join(ops)} ({reason})" for reason, ops in plain.items())
        _log.warning("fused=True on %s %s: in plain PyTorch run %s", device, _name(dtype), text)


def plain_ops(device, dtype):
    """{reason: [op, ...]} of the ops for which no fused backend runs here."""
    plain = {}
    for op, runs, reasons in dispatch.report(device, dtype):
        if runs == "reference":
            here = [b for b in dispatch.TABLE.get((op, device), ()) if b != "reference"]
            reason = ", ".join(f"{b}: {reasons[b]}" for b in here) or f"no kernel for {device} yet"
            plain.setdefault(reason, []).append(op)
    return plain


def report(fused, device, dtype):
    """A table in text: op, what runs it, and why each other backend does not."""
    lines = [f"fused={fused!r} on {device} {_name(dtype)}"]
    for op, runs, reasons in dispatch.report(device, dtype):
        if fused is False:
            runs, note = "reference", "fused=False asks for plain PyTorch"
        else:
            runs = "raises" if fused == "strict" and runs == "reference" else runs
            note = "; ".join(f"{b}: {reason}" for b, reason in reasons.items())
        lines.append(f"  {op:<20} {runs:<10} {note}".rstrip())
    return "\n".join(lines)


def _name(dtype):
    return str(dtype).removeprefix("torch.")
