"""tapegpt and the libraries that train the same model beside it, all with `advance`."""

import importlib
import shutil

import pytest
from workloads import Workload

from tapegpt.train.trainer import Trainer

# name: the package that it wants, the module, the class
PEERS = {
    "NumPy": ("numpy", "numpy_gpt", "NumpyGPT"),
    "PyTorch eager": ("torch", "torch_gpt", "EagerGPT"),
    "PyTorch compiled": ("torch", "torch_gpt", "CompiledGPT"),
    "JAX": ("jax", "jax_gpt", "JaxGPT"),
    "JAX padded": ("jax", "jax_gpt", "PaddedJaxGPT"),
}


def trainer_of(workload: Workload) -> Trainer:
    return Trainer(workload.model, workload.training, workload.documents)


def peer_of(name: str, workload: Workload, trainer: Trainer):
    """A peer that starts from the trainer's weights; skips if it is not installed."""
    package, module, kind = PEERS[name]
    pytest.importorskip(package, reason=f"{name} is not installed: pip install {package}")
    if name == "PyTorch compiled" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip(f"{name} wants a C++ compiler")
    if name == "JAX padded" and not workload.batches().packed:
        pytest.skip(f"{workload.name} has no padding")
    peer = getattr(importlib.import_module(f"peers.{module}"), kind)
    return peer(workload, trainer.compiled.weights)
