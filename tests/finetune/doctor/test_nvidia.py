"""What nvidia-smi and the kernel's log say of a GPU."""

import shlex
import sys
from pathlib import Path

import pytest
from sound_gpu import SOUND

from hybrid_ft.finetune.doctor import nvidia, run
from hybrid_ft.finetune.doctor.finding import Finding


def of_gpu(**other: str) -> list[Finding]:
    """The finding of a sound GPU with other values."""
    values = dict(zip(nvidia.FIELDS, SOUND.strip().split(", "), strict=True))
    values |= {name.replace("__", "."): value for name, value in other.items()}
    return list(nvidia.findings_of_gpus(", ".join(values.values()) + "\n"))


def test_a_sound_gpu_is_not_red() -> None:
    two = SOUND + SOUND.replace("0, NVIDIA", "1, NVIDIA", 1)
    found = list(nvidia.findings_of_gpus(two))
    assert [one.name for one in found] == ["GPU 0", "GPU 1"] and not any(one.red for one in found)
    assert "NVIDIA H100 80GB HBM3, driver 550.54.15, 81559 MiB, 31 C, 345 of 1980 MHz" in found[0].said


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"ecc__errors__uncorrected__volatile__total": "3"}, "3 uncorrected ECC errors"),
        ({"clocks_event_reasons__active": "0x0000000000000048"}, "hardware slowdown, too hot (hardware)"),
        ({"clocks_event_reasons__active": "0x0000000000000080"}, "power brake"),
        ({"memory__used": "40000"}, "40,000 MiB are used by another program"),
        ({"pcie__link__width__current": "1"}, "one PCIe lane"),
        ({"mig__mode__current": "Enabled"}, "MIG is on"),
        ({"temperature__gpu": "[GPU is lost]", "memory__used": "[GPU is lost]"}, "says [GPU is lost]: take another"),
        ({"clocks__sm": "[Unknown Error]"}, "says [Unknown Error]"),
        ({"temperature__gpu": "[GPU requires reset]"}, "says [GPU requires reset]"),
        ({"temperature__gpu": "ERR!"}, "says ERR!"),
    ],
)
def test_a_fault_is_red(other: dict[str, str], said: str) -> None:
    (found,) = of_gpu(**other)
    assert found.red and said in found.said


@pytest.mark.parametrize("missing", ["[N/A]", "[Not Supported]", "[Insufficient Permissions]", "N/A"])
def test_what_a_gpu_does_not_give_is_no_fault(missing: str) -> None:
    """Of a consumer's board, of a part that a virtual machine has, of one whose memory is the host's."""
    given = ("index", "name", "driver_version")
    names = [name.replace(".", "__") for name in nvidia.FIELDS if name not in given]
    (found,) = of_gpu(**dict.fromkeys(names, missing))
    assert not found.red


FAILURES = {
    "no driver": (
        9,
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that it is running.\n",
        "fails: NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver",
    ),
    "mismatch": (
        18,
        "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.127\n",
        "fails: Failed to initialize NVML: Driver/library version mismatch; mend the driver",
    ),
    "lost": (
        15,
        "Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost.  Reboot the system to recover this GPU\n",
        "fails: Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost",
    ),
    "hung": (None, "", "fails: no answer within 1 s; mend"),
    "silent": (255, "", "fails: status 255"),
}


def a_program(place: Path, text: str) -> None:
    file, code = place / "nvidia-smi", place / "nvidia_smi.py"
    code.write_text(f"import sys, time\n{text}\n")
    # a first line with the interpreter's own path would end at a blank in it
    file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(code))} "$@"\n')
    file.chmod(0o755)


@pytest.mark.parametrize("case", FAILURES)
def test_a_driver_that_fails_is_red_and_not_absent(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, screen, said = FAILURES[case]
    a_program(tmp_path, "time.sleep(600)" if status is None else f"print({screen!r}, end='')\nsys.exit({status})")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nvidia, "_PATIENCE", 1.0 if status is None else 300.0)
    first = next(iter(run.of_gpus()))
    assert first.red and first.name == "GPUs" and said in first.said and "\n" not in first.said


def test_an_older_driver_is_asked_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = 'Field "clocks_event_reasons.active" is not a valid field to query.\n\n'
    a_program(
        tmp_path,
        f"if 'clocks_event_reasons.active' in sys.argv[1]:\n    print({refusal!r})\n    sys.exit(2)\n"
        f"assert 'clocks_throttle_reasons.active' in sys.argv[1]\nprint({SOUND!r}, end='')",
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nvidia, "_PATIENCE", 300.0)
    assert nvidia.query() == SOUND


def test_another_form_is_red() -> None:
    (found,) = nvidia.findings_of_gpus("NVIDIA-SMI has failed\n")
    assert found.red


def test_the_kernels_log() -> None:
    line = "[12.3] NVRM: Xid (PCI:0000:3b:00): {}, pid=1234, name=python\n"
    bad = nvidia.finding_of_log("other\n" + line.format(79) + line.format(79))
    assert bad.red and bad.said.startswith("79 on PCI:0000:3b:00 in")
    assert not nvidia.finding_of_log(line.format(31)).red  # a program's own fault
    assert not nvidia.finding_of_log(None).here
