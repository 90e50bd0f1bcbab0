"""Which torch is asked for on which machine; pip and uv are replaced by a record of what they were asked."""

import importlib.util
import stat
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Found = tuple[str, str | None] | None
CPU, CUDA = ("2.13.0+cpu", None), ("2.13.0+cu130", "13.0")


@pytest.fixture
def script(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_torch", root / "scripts" / "install_torch.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def asked(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[str]]]:
    """``asked(gpu, there, can)``: exit status and what was asked for, where only what is in ``can`` succeeds."""

    def go(gpu: bool, there: Found, can: dict[str, Found], system: str = "Linux") -> tuple[int, list[str]]:
        state, asked = [there], []

        def install(name: str) -> bool:
            asked.append(name)
            if name in can:
                state[0] = can[name]
            return name in can

        monkeypatch.setattr(script, "has_nvidia_gpu", lambda: gpu)
        monkeypatch.setattr(script, "installed", lambda: state[0])
        monkeypatch.setattr(script, "pip", lambda name, show=False: install(name))
        monkeypatch.setattr(script, "uv_cpu", lambda: install("uv"))
        monkeypatch.setattr(script.subprocess, "run", lambda command, **options: asked.append(command[3]))
        monkeypatch.setattr(script.platform, "system", lambda: system)
        return script.main(), asked

    return go


def test_without_a_gpu_the_cpu_build_is_taken_where_pip_finds_one(asked: Callable) -> None:
    assert asked(False, None, {"torch===2.13.0+cpu": CPU}) == (0, ["uninstall", "torch===2.13.0+cpu"])


def test_without_a_gpu_the_next_choice_is_uv_and_the_last_the_default(asked: Callable) -> None:
    assert asked(False, None, {"uv": CPU})[1][1:] == ["torch===2.13.0+cpu", "uv"]
    assert asked(False, None, {"torch==2.13.0": CUDA}) == (
        0,
        ["uninstall", "torch===2.13.0+cpu", "uv", "torch==2.13.0"],
    )


def test_with_a_gpu_a_cpu_build_is_replaced(asked: Callable) -> None:
    """=== does not match 2.13.0+cpu, whatever pip is configured to offer."""
    assert asked(True, CPU, {"torch===2.13.0": ("2.13.0", "13.0")}) == (0, ["torch===2.13.0"])
    assert asked(True, CPU, {"torch==2.13.0": CUDA}) == (0, ["torch===2.13.0", "torch==2.13.0"])


def test_a_cpu_build_on_a_gpu_machine_is_a_failure_that_is_told(
    asked: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(True, None, {"torch==2.13.0": CPU})[0] == 1
    assert "a CPU build, on a machine with an NVIDIA GPU" in capsys.readouterr().err


def test_other_systems_have_one_build(asked: Callable) -> None:
    assert asked(False, None, {"torch==2.13.0": ("2.13.0", None)}, system="Darwin")[1] == ["uninstall", "torch==2.13.0"]


@pytest.mark.parametrize(
    ("there", "gpu"), [(CPU, False), (CUDA, False), (CUDA, True), (("2.11.0", None), False), (("2.12.1+rocm6.4", None), True)]
)  # fmt: skip
def test_what_fits_is_kept(asked: Callable, there: Found, gpu: bool) -> None:
    assert asked(gpu, there, {}) == (0, [])


def test_an_old_one_is_replaced(asked: Callable) -> None:
    assert asked(False, ("2.10.0", None), {"torch===2.13.0+cpu": CPU})[0] == 0


@pytest.mark.parametrize(
    ("says", "gpu"), [("echo 'GPU 0: NVIDIA H200'", True), ("echo none; exit 9", False), ("echo", False)]
)
def test_the_driver_is_asked(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, gpu: bool
) -> None:
    if Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has a driver")
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{says}\n")
    smi.chmod(smi.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert script.has_nvidia_gpu() is gpu
