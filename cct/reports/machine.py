"""What a number depends on: the machine, the versions, the commit."""

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "numpy", "onnxruntime", "openvino", "zentorch")
FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16")


@functools.cache
def machine():
    """The facts. `name` is one for files: CCT_MACHINE, or made from the processor, its best instructions and its cores."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    cpu = (re.findall(r"model name\s*: (.*)", text) or [platform.processor() or platform.machine()])[0]
    flags = set((re.findall(r"flags\s*: (.*)", text) or [""])[0].split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"cpu": cpu, "cores": cores, "features": [f for f in FEATURES if f in flags]}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    words = [facts["gpu"]] if "gpu" in facts else [cpu, *facts["features"][-1:]]  # processors of one family share a name
    slug = re.sub(r"[^a-z0-9]+", "-", " ".join([*words, f"{cores} cores"]).lower().replace("(r)", "")).strip("-")
    return {"name": os.environ.get("CCT_MACHINE", slug), **facts}


@functools.cache
def versions():
    """{"python": ..., package: ...} of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def commit():
    """The commit of the working tree, with "+" when files differ from it; "" for an installed package."""
    if not (ROOT / ".git").exists():
        return ""

    def git(*args):
        try:
            return subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True).stdout.strip()
        except OSError:  # there is no git
            return ""

    return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
