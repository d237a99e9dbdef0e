import importlib.machinery
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import torch

import cpfast
from cpfast import _backend

pytestmark = pytest.mark.slow


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_compiled_ops_are_in_use():
    assert cpfast.backend() in ("cpu", "cuda")
    info = cpfast.build_info()
    assert info["abi"] == "LibTorch stable ABI, torch >= 2.11"
    assert info["cpu_kernels"] in info["cpu_kernels_here"].split()
    assert all(isinstance(value, str) for value in info.values())


@pytest.mark.parametrize("isa", cpfast.build_info()["cpu_kernels_here"].split())
def test_the_instruction_set_can_be_chosen(isa):
    code = "import cpfast; print(cpfast.build_info()['cpu_kernels'])"
    assert run(code, CPFAST_ISA=isa).stdout.split() == [isa]


def test_an_instruction_set_that_is_not_here_is_an_error():
    available = cpfast.build_info()["cpu_kernels_here"].split()
    for name in {"v2", "v3", "v4"} - set(available):
        assert last_line(run("import cpfast", CPFAST_ISA=name)) == (
            f"ImportError: CPFAST_ISA: expected one of {', '.join(available)}, the instruction "
            f"sets of this machine, or nothing; got {name!r}"
        )


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm here")
def test_of_torch_the_binaries_use_nothing_but_its_c_shims():
    libraries = list(pathlib.Path(cpfast.__file__).parent.glob("_*.so"))
    assert libraries
    for library in libraries:
        nm = ["nm", "-D", "--undefined-only", str(library)]
        symbols = subprocess.run(nm, capture_output=True, text=True, check=True).stdout.split()
        assert any(symbol.startswith("aoti_torch_") for symbol in symbols)
        # at::, c10:: and torch:: change from release to release.
        assert [s for s in symbols if re.match(r"_Z\w*?N?K?(2at|3c10|5torch)", s)] == []


def test_the_reference_runs_where_it_is_asked_for():
    code = (
        "import torch, cpfast; w = torch.ones(3)\n"
        "print(cpfast.backend(), cpfast.build_info(), cpfast.ops.layer_rotation([w], [-w]).item())"
    )
    out = run(code, CPFAST_BACKEND="reference")
    assert out.stdout.split() == ["reference", "{}", "2.0"], out.stderr


def last_line(out):
    assert out.returncode != 0
    return out.stderr.strip().splitlines()[-1]


def test_an_unknown_backend_is_an_error():
    line = last_line(run("import cpfast", CPFAST_BACKEND="fast"))
    assert line == "ImportError: CPFAST_BACKEND: expected 'reference' or nothing, got 'fast'"


def test_a_missing_build_is_an_error_that_names_the_fix():
    line = last_line(run("import sys; sys.modules['cpfast._C'] = None; import cpfast"))
    assert "cpfast's compiled ops cannot be loaded" in line
    assert "pip install --no-build-isolation ." in line
    assert "CPFAST_BACKEND=reference" in line


def test_an_old_torch_is_an_error_that_names_the_fix():
    line = last_line(run("import torch; torch.__version__ = '2.9.1+cpu'; import cpfast"))
    assert line == (
        "ImportError: cpfast needs torch >= 2.11, found 2.9.1+cpu: pip install 'torch>=2.11'"
    )


def test_importing_needs_torch_and_numpy_alone():
    code = (
        "import sys, torch, numpy; torch_alone = set(sys.modules); import cpfast\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - torch_alone}\n"
        "optional = {'sklearn', 'matplotlib', 'codecarbon', 'PIL', 'tqdm'}\n"
        "print(sorted(optional & new), 'cpfast.train' in sys.modules)"
    )
    assert run(code).stdout.strip() == "[] False"


def test_a_device_without_kernels_is_an_error_that_names_the_fix(monkeypatch, tmp_path):
    monkeypatch.setattr(_backend, "_FOLDER", tmp_path)
    monkeypatch.setattr(_backend, "CUDA_MISSING", _backend._load_cuda())
    with pytest.raises(RuntimeError, match=r"input is on cuda:1, .* CPFAST_CUDA=1 pip install"):
        _backend.require_kernels("scored_cross_entropy", "input", torch.device("cuda:1"))
    with pytest.raises(RuntimeError, match="scores is on mps, but the ops run on cpu and cuda"):
        _backend.require_kernels("select_samples", "scores", torch.device("mps"))
    monkeypatch.setattr(_backend, "CUDA_MISSING", "")
    _backend.require_kernels("select_samples", "scores", torch.device("cuda:0"))


SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]


@pytest.fixture
def library(tmp_path):
    """In a folder of its own, a _cuda library that needs another, which is gone."""
    if shutil.which("cc") is None:
        pytest.skip("no cc here")
    needed, library = tmp_path / "libcudart.so.99", tmp_path / f"_cuda{SUFFIX}"
    empty = ["cc", "-shared", "-Wl,--no-as-needed", "-x", "c", "/dev/null", "-x", "none"]
    subprocess.run([*empty, f"-Wl,-soname,{needed.name}", "-o", needed], check=True)
    subprocess.run([*empty, needed, "-o", library], check=True)
    needed.unlink()
    return library


@pytest.mark.parametrize(
    ("present", "cure"),
    [("12.6", "install a torch with CUDA 13"), ("13.1", "put .* in LD_LIBRARY_PATH")],
)
def test_a_missing_cuda_library_leaves_the_cpus_ops(library, monkeypatch, present, cure):
    native = _backend._load_native()
    info = {**native.build_info(), "cuda": "13.0"}
    monkeypatch.setattr(native, "build_info", lambda: info)
    monkeypatch.setattr(_backend, "_FOLDER", library.parent)
    monkeypatch.setattr(torch.version, "cuda", present)
    reason = (
        r"cpfast's CUDA ops cannot be loaded \(libcudart\.so\.99: cannot open shared object file: "
        rf"[^\n]*\): they were built with CUDA 13\.0, and torch \S+ has CUDA {present}; {cure}, or "
        r"rebuild them with CPFAST_CUDA=1 pip install [^\n]*"
    )
    with pytest.warns(
        RuntimeWarning, match=rf"\A{reason}; until then .* on the CPU alone\Z"
    ) as told:
        monkeypatch.setattr(_backend, "CUDA_MISSING", _backend._load_cuda())
    assert len(told) == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cpfast.backend() == "cpu"
    assert cpfast.ops.layer_rotation([torch.ones(3)], [torch.ones(3)]).item() == 0
    with pytest.raises(RuntimeError, match=rf"select_samples: scores is on cuda:0, but {reason}"):
        _backend.require_kernels("select_samples", "scores", torch.device("cuda:0"))


def test_the_import_itself_survives_it(library):
    """From a copy of the package, with that library where its own would be."""
    package = library.parent / "copy" / "cpfast"
    shutil.copytree(_backend._FOLDER, package, ignore=shutil.ignore_patterns("_cuda*", "train"))
    shutil.copy(library, package)
    code = (
        "import torch; torch.version.cuda = '13.0'; import cpfast\n"
        "print(cpfast.__file__, cpfast.backend())"
    )
    out = run(code, PYTHONPATH=str(package.parent))
    assert out.stdout.split() == [str(package / "__init__.py"), "cpu"], out.stderr
    assert out.stderr.count("Warning") == 1
    assert "libcudart.so.99: cannot open shared object file" in out.stderr


def test_a_library_of_another_interpreter_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(_backend, "_FOLDER", tmp_path)
    (tmp_path / "_cuda.cpython-39-x86_64-linux-gnu.so").touch()
    assert _backend._cuda_library() is None
    assert _backend.build_info()["cuda"] == _backend.build_info()["cuda_architectures"] == "none"
    (tmp_path / f"_cuda{SUFFIX}").touch()
    assert _backend._cuda_library() == tmp_path / f"_cuda{SUFFIX}"


def test_without_cuda_in_torch_its_ops_are_not_loaded(library, monkeypatch):
    monkeypatch.setattr(_backend, "_FOLDER", library.parent)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert _backend._load_cuda() == (
        f"torch {torch.__version__} has no CUDA: install a CUDA build of torch"
    )


def test_the_ops_refuse_such_a_device():
    class Elsewhere(torch.Tensor):
        device = torch.device("mps")

    x = torch.zeros(2, 3).as_subclass(Elsewhere)
    with pytest.raises(RuntimeError, match="input is on mps"):
        cpfast.ops.scored_cross_entropy(x, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(RuntimeError, match=r"params\[0\] is on mps"):
        cpfast.ops.layer_rotation([x], [x])
