"""What installs, and under which names."""

import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from zipfile import ZipFile

import pytest

import tapegpt
from tapegpt.corpus import default_corpus, read_documents

ROOT = Path(__file__).parents[2]


def modules(directory: str, package: str) -> set[str]:
    """Every module below the directory, links left out, as it is called in the wheel."""
    top = ROOT / directory
    return {
        f"{package}/{(Path(folder) / file).relative_to(top).as_posix()}"
        for folder, _, files in os.walk(top)
        for file in files
        if file.endswith(".py")
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of a wheel built from a copy of the checkout, without those of its .dist-info."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ["pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, copy)
    for name in ["tapegpt", "kernels", "data", "tests"]:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    # The backend itself, because pip would fetch it from the network.
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (path,) = copy.glob("*.whl")
    with ZipFile(path) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_wheel_holds_the_package_and_nothing_else(wheel: set[str]) -> None:
    assert wheel == {
        "tapegpt/py.typed",
        *(f"tapegpt/data/{name}.txt" for name in ("names", "places", "prose")),
        *modules("tapegpt", "tapegpt"),
        *modules("kernels", "tapegpt/kernels"),
        *modules("data", "tapegpt/data"),
    }


def test_kernels_refuse_another_name() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode != 0
    assert "ImportError: import tapegpt.kernels, not kernels" in run.stderr


def test_one_module_from_the_checkout_and_from_elsewhere(tmp_path: Path) -> None:
    show = "import tapegpt.kernels as k, os; print(os.path.realpath(k.__file__))"
    for directory in (ROOT, tmp_path):
        command = [sys.executable, "-c", show]
        run = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True)
        assert Path(run.stdout.strip()) == ROOT / "kernels" / "__init__.py"


# What is installed is found by a finder of its own, which would find what a copy lacks.
FROM_COPY = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
sys.path.insert(0, sys.argv[1])
import tapegpt
assert tapegpt.__file__.startswith(sys.argv[1])
from tapegpt.corpus import default_corpus, read_documents
from tapegpt.commands.flags import given
from tapegpt.presets import configure
from tapegpt.settings import ModelConfig, SampleConfig, TrainConfig
import tapegpt.kernels
print(len(read_documents(default_corpus())))
"""


def names_read_from_copy(path: Path) -> int:
    command = [sys.executable, "-c", FROM_COPY, str(path)]
    run = subprocess.run(command, cwd=path.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


def test_a_checkout_without_symbolic_links(tmp_path: Path) -> None:
    """Git then writes a link's target into a file of its name."""
    for name in ["tapegpt", "kernels", "data"]:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignored)
    for link in [tmp_path / "tapegpt" / "kernels", tmp_path / "tapegpt" / "data"]:
        target = os.readlink(link)
        link.unlink()
        link.write_text(target)
    assert names_read_from_copy(tmp_path) == len(read_documents(default_corpus()))


def test_the_package_in_a_zip_file(tmp_path: Path) -> None:
    path = tmp_path / "package.zip"
    with ZipFile(path, "w") as archive:
        for name in modules("tapegpt", "tapegpt"):
            archive.write(ROOT / name, name)
        for name in [*modules("kernels", "kernels"), *modules("data", "data"), "data/names.txt"]:
            archive.write(ROOT / name, f"tapegpt/{name}")
    assert names_read_from_copy(path) == len(read_documents(default_corpus()))


def test_names_are_found_as_a_resource() -> None:
    assert resources.files("tapegpt.data").joinpath("names.txt").is_file()


def test_public_names() -> None:
    assert set(tapegpt.__all__) >= {"GPT", "RNN", "Corpus", "Tape", "TapeError", "load", "train"}
    assert tapegpt.Tape is tapegpt.tape.Tape
    with pytest.raises(AttributeError, match="module 'tapegpt' has no attribute 'Tap'"):
        tapegpt.Tap  # noqa: B018 - asking for it is the test
