"""What is installed, what was built and what this machine can run; behind ``ddn-fast info``.

Works without the compiled extension and without a GPU: what is missing is named, with what would bring it.
"""

from __future__ import annotations

import os
import platform
import re
from importlib import import_module, metadata
from typing import Any

import torch

from . import reference
from .errors import InputError

MIN_CAPABILITY = 8  # its major number: what csrc/cuda is written for

_DISTRIBUTIONS = {
    "torch": ("torch",),
    "numpy": ("numpy",),
    "opencv": ("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "Pillow": ("pillow",),
    "safetensors": ("safetensors",),
    "tqdm": ("tqdm",),
}


def collect() -> dict[str, Any]:
    """Everything ``ddn-fast info --json`` prints, as plain JSON values.

    Keys: ``ddn_fast``, ``python``, ``platform``, ``versions`` (None where not installed), ``build`` (None without the
    extension), ``cpu`` (``cores``, ``threads``, ``features``, ``isa``: the instruction set that kernels use), ``cuda``
    (torch's CUDA version or None), ``gpus`` (each with ``capability``, whether it is ``covered`` by the kernels built,
    the architecture whose ``code`` it runs, and the matrix instructions of its ``conv3x3``: mma or wgmma), ``ops`` (op
    to ``{"cpu": bool, "cuda": bool}``) and ``missing``: a sentence for each kernel that cannot run here, saying how to
    get it.
    """
    native, missing = _extension()
    if native:
        import_module("ddn_fast.ops")  # registers the kernels that are the vendor library's
    build = native.build_info() if native else None
    gpus = [_gpu(index, build) for index in range(torch.cuda.device_count())]
    if build and not build["cuda_archs"]:
        missing.append("no CUDA kernels were built: rebuild where nvcc is found (DDN_CUDA=ON makes that a condition)")
    missing += [_no_kernel(gpu, build) for gpu in gpus if build and build["cuda_archs"] and not gpu["covered"]]
    if not torch.backends.cuda.is_built():
        missing.append("this torch has no CUDA: install a CUDA build of torch to use a GPU")
    elif not gpus:
        missing.append("no GPU is visible to torch")
    return {
        "ddn_fast": _version("ddn-fast"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(*candidates) for name, candidates in _DISTRIBUTIONS.items()},
        "build": build,
        "cpu": {
            "cores": cores(),
            "threads": torch.get_num_threads(),
            "features": native.cpu_features() if native else None,
            "isa": cpu_isa(),
        },
        "cuda": torch.version.cuda,
        "gpus": gpus,
        "ops": {name: _kernels(name, build) for name in reference.OPS},
        "missing": missing,
    }


def text() -> str:
    """The same for people, one line per fact."""
    info = collect()
    build, cpu = info["build"], info["cpu"]
    lines = [
        ("ddn_fast", f"{info['ddn_fast'] or 'not installed'}, Python {info['python']}, {info['platform']}"),
        ("libraries", ", ".join(f"{name} {version or 'missing'}" for name, version in info["versions"].items())),
        ("torch's CUDA", info["cuda"] or "none"),
    ]
    if build:
        kernels = f"CUDA {build['cuda']} for {' '.join(build['cuda_archs'])}" if build["cuda_archs"] else "no CUDA"
        lines.append(("extension", f"{build['version']}, {build['compiler']}, torch {build['torch']}, {kernels}"))
        features = [name for name, present in cpu["features"].items() if present]
        lines.append(("CPU", f"{cpu['cores']} cores, {cpu['threads']} threads, {' '.join(features) or 'plain'}"))
        lines.append(("kernels use", cpu["isa"]))
    else:
        lines.append(("CPU", f"{cpu['cores']} cores, {cpu['threads']} threads"))
    for gpu in info["gpus"]:
        memory = f"{gpu['memory_bytes'] / 2**30:.0f} GiB"
        lines.append(("GPU", f"{gpu['name']}, compute capability {gpu['capability']}, {memory}"))
        lines.append(("kernels use", f"{gpu['code']}, conv3x3 by {gpu['conv3x3']}" if gpu["covered"] else "none fits"))
    for name, kernels in info["ops"].items():
        lines.append((name, " ".join(device for device, built in kernels.items() if built) or "no kernel"))
    lines += [("missing", sentence) for sentence in info["missing"]]
    width = max(len(label) for label, _ in lines) + 2
    return "\n".join(f"{label:<{width}}{value}" for label, value in lines)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_isa() -> str | None:
    """The instruction set that CPU kernels use here and now, as ``_C.cpu_isa`` names it; None without the extension.

    Raises InputError where the environment variable DDN_MAX_CPU_ISA names none.
    """
    native, _ = _extension()
    try:
        return native.cpu_isa() if native else None
    except RuntimeError as error:
        raise InputError(str(error)) from error


def engine_lacks(device: torch.device) -> str | None:
    """Why the compiled ops of an engine cannot run on a CPU or CUDA device, and what to do; None where they can."""
    native, missing = _extension()
    if native is None:
        return missing[0]
    if device.type == "cpu":
        return None
    build = native.build_info()
    if not build["cuda_archs"]:
        return "this ddn-fast was built without CUDA kernels: rebuild it where nvcc is found (DDN_CUDA=ON)"
    gpu = _gpu(torch.cuda.current_device() if device.index is None else device.index, build)
    return None if gpu["covered"] else _no_kernel(gpu, build)


def kernels_of(index: int) -> str:
    """One line that names a GPU and the code it runs."""
    native, _ = _extension()
    gpu = _gpu(index, native.build_info() if native else None)
    return f"{gpu['name']}, {gpu['code']}, {gpu['conv3x3']}" if gpu["covered"] else str(gpu["name"])


def covers(archs: list[str], capability: tuple[int, int]) -> bool:
    """Whether code built for `archs` (CMake's names: "90a-real", "80-virtual") runs on a GPU of this capability."""
    return code_for(archs, capability) is not None


def code_for(archs: list[str], capability: tuple[int, int]) -> str | None:
    """Which of `archs` a GPU of this capability runs: the nearest machine code, else PTX, else None.

    Machine code serves its own major version from its own minor on, PTX everything newer, an "a" exactly one.
    """
    found: list[tuple[bool, tuple[int, int], bool, str]] = []
    for arch in archs:
        match = re.fullmatch(r"(\d+)(\d)([af]?)-(real|virtual)", arch)
        if match is None:
            raise ValueError(f"covers: an architecture must read like 90a-real or 80-virtual, got {arch!r}")
        built = int(match[1]), int(match[2])
        if match[3] == "a":
            fits = built == capability
        elif match[4] == "virtual" and not match[3]:
            fits = built <= capability
        else:
            fits = built[0] == capability[0] and built <= capability
        if fits:
            found.append((match[4] == "real", built, bool(match[3]), arch))
    return max(found)[3] if found else None


def _extension() -> tuple[Any, list[str]]:
    try:
        return import_module("ddn_fast._C"), []
    except ImportError as error:
        build = "build it with `pip install --no-build-isolation -e .`"
        return None, [f"the compiled extension cannot be imported ({error}): {build}"]


def _kernels(name: str, build: dict[str, Any] | None) -> dict[str, bool]:
    def registered(key: str) -> bool:
        return build is not None and torch._C._dispatch_has_kernel_for_dispatch_key(f"ddn_fast::{name}", key)

    # the CUDA key is registered in every build, to say what is missing
    return {
        "cpu": registered("CPU"),
        "cuda": registered("CUDA") and bool(build and build["cuda_archs"]),
    }


def _gpu(index: int, build: dict[str, Any] | None) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    code = code_for(build["cuda_archs"], (properties.major, properties.minor)) if build else None
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "covered": code is not None,
        "code": code,
        "conv3x3": _cuda_isa(index) if code else None,
    }


def _cuda_isa(index: int) -> str | None:
    """The matrix instructions of a GPU's convolutions, as ``_C.cuda_isa`` names them."""
    native, _ = _extension()
    try:
        with torch.cuda.device(index):
            return str(native.cuda_isa())
    except RuntimeError as error:  # DDN_MAX_CUDA_ISA names none
        raise InputError(str(error)) from error


def _no_kernel(gpu: dict[str, Any], build: dict[str, Any]) -> str:
    """What is wrong where none of the architectures built fits a GPU, and what to do."""
    if int(gpu["capability"].split(".")[0]) < MIN_CAPABILITY:
        return f"no CUDA kernel for {gpu['name']} ({gpu['capability']}): they need compute capability 8.0 or newer"
    return (
        f"no CUDA kernel for {gpu['name']} among those built ({', '.join(build['cuda_archs'])}): rebuild with "
        f"{gpu['capability']} in TORCH_CUDA_ARCH_LIST"
    )


def _version(*candidates: str) -> str | None:
    for name in candidates:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
