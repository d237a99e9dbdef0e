"""`cpfast env`: what a report of an error should come with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import torch

import cpfast
from cpfast import _backend
from cpfast.cli.options import no_cuda


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "env",
        help="versions, backend, build, devices",
        description="Print what a report of an error should come with.",
    )
    parser.set_defaults(run=_run)


def _run(options: dict[str, Any], arguments: list[str]) -> None:
    rows = [("python", platform.python_version()), ("torch", torch.__version__)]
    rows.append(("cpfast", cpfast.__version__))
    for name in ("numpy", "scikit-learn", "matplotlib", "codecarbon", "pillow", "tqdm"):
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append((name, "not installed"))
    rows.append(("backend", cpfast.backend()))
    rows.append(("CUDA ops", _backend.CUDA_MISSING or "loaded"))
    rows += [(f"build {key}", str(value)) for key, value in cpfast.build_info().items()]
    rows.append(("platform", platform.platform()))
    rows.append(("CPU", f"{os.cpu_count()} threads, torch uses {torch.get_num_threads()}"))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = f"{properties.total_memory / 2**30:.0f} GiB"
            rows.append((f"cuda:{index}", f"{properties.name}, {memory}"))
    else:
        rows.append(("CUDA", f"none ({no_cuda()})"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
