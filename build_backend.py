"""The build backend: setuptools, plus the PyTorch that is already installed.

pip builds in an isolated environment that hides site-packages, and a build requirement "torch" would download gigabytes of a
second, perhaps different, PyTorch. The libraries must be built against the one they will be loaded into, so this backend puts
the environment's own site-packages behind the isolated ones when it holds torch, and asks for torch only when there is none.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (every other hook of PEP 517 and 660)

SITE_PACKAGES = sysconfig.get_path("purelib")
if os.path.isdir(os.path.join(SITE_PACKAGES, "torch")) and SITE_PACKAGES not in sys.path:
    sys.path.append(SITE_PACKAGES)


def _runs(tool):
    """A cmake installed by pip is a Python script, which cannot see its package from an isolated build."""
    return bool(shutil.which(tool)) and subprocess.run([tool, "--version"], capture_output=True).returncode == 0


def _native_requirements():
    needs = [] if importlib.util.find_spec("torch") else ["torch>=2.11,<2.14", "numpy"]
    return needs + [tool for tool in ("cmake", "ninja") if not _runs(tool)]


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + _native_requirements()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + _native_requirements()
