"""What figures hold for."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import geventws

__all__ = ["machine"]


def machine() -> dict[str, Any]:
    """The machine and the versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "geventws": f"{geventws.__version__}, {geventws.build()}",
    }
