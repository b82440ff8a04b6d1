"""What is told of the machine that this runs on."""

from pathlib import Path

import pytest
from numba.core import config

from tapegpt.kernels.compile import cpu
from tapegpt.system import host


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor\t: 0\nmodel name\t: A: B 1.0GHz\n\nmodel name\t: C\n", "A: B 1.0GHz"),
        ("processor\t: 0\nhart\t: 0\n", "riscv64"),
        (None, "riscv64"),  # on a system without that file
    ],
)
def test_the_name_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, cpuinfo: str | None, name: str
) -> None:
    assert host.cpu_name()

    def read_text(path: Path) -> str:
        if cpuinfo is None:
            raise FileNotFoundError
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(host.platform, "processor", lambda: "")
    monkeypatch.setattr(host.platform, "machine", lambda: "riscv64")
    assert host.cpu_name() == name


def test_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{host.lanes()} x float32" in host.vector_name()
    monkeypatch.setattr(config, "CPU_FEATURES", "+sse4.2,-avx512f,+avx2,+bmi,+fma")
    assert host.vector_features() == ["avx2", "fma", "sse4.2"]
    monkeypatch.setattr(config, "CPU_NAME", "haswell")
    assert host.vector_name().endswith(", compiled for haswell")
    monkeypatch.setattr(cpu, "MATRIX_UNIT", True)
    assert host.vector_name().endswith(" x float32, AMX for products, compiled for haswell")


def test_llvm_version() -> None:
    assert int(host.llvm_version().split(".")[0]) >= 14
