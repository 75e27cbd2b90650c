"""Build hook: the native kernels into every wheel and every editable install, where there is a compiler.

Nothing depends on it: without a compiler, or where one fails, the package is installed all the same, and computes on
the reference path, which `tallstore --version` says. Where the machine has no C compiler, the package ziglang becomes a
build requirement. A front end fails if it cannot download a build requirement, so pip is asked first, in a dry run with
the settings of its configuration and environment; options of pip's command line do not reach a build hook: with
`--no-index` or `--index-url` alone, set TALLSTORE_BUILD=0. Environment variables, mostly for those who build wheels:

    TALLSTORE_BUILD            0: do not build, and do not ask for a compiler; 1: fail where it cannot be built
    TALLSTORE_BUILD_TARGET     what to build for, as zig names it (aarch64-linux-gnu.2.17, aarch64-macos); needs ziglang
    TALLSTORE_BUILD_PLATFORM   the wheel's platform tag (manylinux_2_17_aarch64, macosx_11_0_arm64)
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_ZIG_MACHINES = "x86_64 AMD64 aarch64 arm64"
"""Machines that the package ziglang is made for, among others."""
_ZIG = "ziglang>=0.13"
_PIP = ("-I", "-m", "pip", "--disable-pip-version-check", "--retries=0", "--timeout=15", "install", "--quiet")
"""Isolated: the build environment hides the environment that pip is installed in."""


def build_module(root: str) -> ModuleType:
    """`tallstore.kernels.native.build`, without the package, whose dependencies are not there yet."""
    path = Path(root) / "tallstore" / "kernels" / "native" / "build.py"
    spec = importlib.util.spec_from_file_location("_tallstore_native_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _can_be_had(requirement: str) -> bool:
    """Whether pip finds a package's wheel; true where this environment has no pip: then another front end decides."""
    pip = subprocess.run([sys.executable, "-I", "-c", "import pip"], capture_output=True, check=False)
    if pip.returncode:
        return True
    words = [*_PIP, "--dry-run", "--no-deps", "--ignore-installed", "--only-binary=:all:", requirement]
    try:
        done = subprocess.run([sys.executable, *words], capture_output=True, check=False, timeout=300)  # noqa: S603 - pip of this Python
    except subprocess.TimeoutExpired:
        return False
    return not done.returncode


class NativeKernels(BuildHookInterface):
    """See above."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """The compiler of the package ziglang, where it is needed."""
        if os.environ.get("TALLSTORE_BUILD") == "0":
            return []
        demanded = "TALLSTORE_BUILD_TARGET" in os.environ or os.environ.get("TALLSTORE_BUILD") == "1"
        build = build_module(self.root)
        if build.find_compiler() is not None and "TALLSTORE_BUILD_TARGET" not in os.environ:
            return []
        if platform.machine() not in _ZIG_MACHINES.split():
            return []
        if build.zig() is not None or demanded or _can_be_had(_ZIG):
            return [_ZIG]
        self.app.display_warning(f"tallstore: no C compiler, and pip cannot get {_ZIG}: no native kernels are built")
        return []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, and put the library into the wheel, or what it is built of. An editable install has both at hand."""
        if self.target_name != "wheel":
            return
        build = build_module(self.root)
        own = {str(build.SOURCES): build.SOURCES.relative_to(self.root).as_posix()}
        sources = {} if version == "editable" else own
        if os.environ.get("TALLSTORE_BUILD") == "0":
            build_data["force_include"].update(sources)
            return
        target = os.environ.get("TALLSTORE_BUILD_TARGET")
        try:
            made = build.build(target=target)
        except (build.BuildError, OSError) as error:
            if os.environ.get("TALLSTORE_BUILD") == "1":
                raise
            self.app.display_warning(f"tallstore is installed without its native kernels: {error}")
            build_data["force_include"].update(sources)
            return
        for path in (made, build.sum_path(made)):
            build_data["artifacts"].append(f"/{path.relative_to(self.root).as_posix()}")
        build_data["pure_python"] = False
        here = sysconfig.get_platform().replace("universal2", platform.machine())
        tag = os.environ.get("TALLSTORE_BUILD_PLATFORM") or here
        build_data["tag"] = f"py3-none-{tag.replace('-', '_').replace('.', '_')}"
