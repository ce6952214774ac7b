"""The sessions of a run: each process, one after the other, with its machine, versions and commit."""

import datetime

import torch

from cct.reports import machine

NOT_RECORDED = {"began": "", "machine": "not recorded", "versions": "not recorded", "commit": "not recorded"}


def begin(device, workers):
    """This session: when it began (UTC), commit, versions, and on what it runs; of several machines, the first."""
    facts = machine.machine()
    threads = torch.get_num_threads()
    where = f"{facts['cpu']}, {facts['cores']} cores, {threads} thread{'' if threads == 1 else 's'}"
    return {
        "began": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M}",
        "commit": machine.commit(),
        "versions": " ".join(f"{name} {version}" for name, version in machine.versions().items()),
        "machine": (f"{workers.count} x " if workers.count > 1 else "")
        + (torch.cuda.get_device_name(device) if device.type == "cuda" else where),
    }


def earlier(state):
    """The sessions that a resume state tells of; a state of an older version only tells how long they took."""
    seconds = round(state["seconds_from_start"])
    return state.get("sessions") or [{**NOT_RECORDED, "seconds": seconds, "epochs": len(state["rows"])}]


def crowded(device, workers):
    """A line, in a list, where more threads compute than there are cores: of a run that began on a larger machine; else []."""
    cores, threads = machine.machine()["cores"], torch.get_num_threads()
    if device.type != "cpu" or workers.local_count * threads <= cores:
        return []
    each, fewer = f"{workers.local_count} x " if workers.local_count > 1 else "", max(1, cores // workers.local_count)
    return [f"threads  {each}{threads}, as before, on {cores} cores: faster with --resume ... --threads {fewer}"]


def changes(before, now):
    """A line for each of machine, versions and commit that is known to have been another in the session before."""
    names = [name for name in ("machine", "versions", "commit") if before[name] not in (now[name], NOT_RECORDED[name])]
    return [f"changed  {name}: {before[name] or 'none'} -> {now[name] or 'none'}" for name in names]
