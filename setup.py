"""Builds the native libraries through CMake; everything else stands in pyproject.toml."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """cmake + ninja write libcct_*.so into cct_kernels/lib (the source tree for an editable install, else the build folder)."""

    def run(self):
        compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
        if not compiler or not shutil.which(compiler.split()[0]):
            sys.exit(
                "cct-kernels needs a C++20 compiler: install g++ 11 or newer (Debian, Ubuntu: apt install g++) and try again."
            )
        for tool in ("cmake", "ninja"):
            if shutil.which(tool) is None:
                sys.exit(f"cct-kernels is built with cmake and ninja, and {tool} is not here: run `pip install cmake ninja`.")
        output = ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()
        build = ROOT / "build" / "native"  # kept: a second build compiles what changed
        build.mkdir(parents=True, exist_ok=True)
        options = {
            "CCT_TORCH": self._torch(),
            "CCT_OUTPUT": output / "cct_kernels" / "lib",
            "CCT_CUDA": os.environ.get("CCT_CUDA", "auto"),
            "CMAKE_CXX_COMPILER": shutil.which(compiler.split()[0]),
            "CMAKE_MAKE_PROGRAM": shutil.which("ninja"),  # an isolated build brings its own, gone when it ends
        }
        try:
            self._call(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *(f"-D{k}={v}" for k, v in options.items())])
            self._call(["cmake", "--build", build])
        except subprocess.CalledProcessError as error:
            sys.exit(f"cct-kernels: {' '.join(map(str, error.cmd[:2]))} failed; the compiler's message stands above.")

    @staticmethod
    def _torch():
        spec = importlib.util.find_spec("torch")  # found, not imported: an isolated build sees it but not all it needs
        if spec is None:
            sys.exit("cct-kernels is built against PyTorch: run `pip install torch` first, or leave out --no-build-isolation.")
        return spec.submodule_search_locations[0]

    @staticmethod
    def _call(command):
        subprocess.run(list(map(str, command)), check=True)

    def get_outputs(self):
        return []

    def get_source_files(self):
        return []


# The extension is a name for the wheel's platform tag; CMakeBuild builds the real libraries.
setup(ext_modules=[Extension("cct_kernels.lib", sources=[])], cmdclass={"build_ext": CMakeBuild})
