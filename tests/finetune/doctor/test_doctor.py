"""Each check of ``hybrid-ft doctor``, on a sound machine and on a faulty one."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune import launch
from hybrid_ft.finetune.doctor import arithmetic, collectives, hub, nvidia, run, system
from hybrid_ft.finetune.doctor.finding import Finding
from hybrid_ft.finetune.recipe.schema import Recipe

SOUND = "0, NVIDIA H100 80GB HBM3, 550.54.15, 81559, 4, 0, 0x0000000000000001, 31, 345, 1980, 16, Disabled\n"


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
    ],
)
def test_a_fault_is_red(other: dict[str, str], said: str) -> None:
    (found,) = of_gpu(**other)
    assert found.red and said in found.said


@pytest.mark.parametrize("missing", ["[N/A]", "[Not Supported]"])
def test_what_a_gpu_does_not_give_is_no_fault(missing: str) -> None:
    names = ("ecc__errors__uncorrected__volatile__total", "clocks_event_reasons__active", "mig__mode__current")
    (found,) = of_gpu(**dict.fromkeys(names, missing))
    assert not found.red


def test_another_form_is_red() -> None:
    (found,) = nvidia.findings_of_gpus("NVIDIA-SMI has failed\n")
    assert found.red


def test_the_kernels_log() -> None:
    line = "[12.3] NVRM: Xid (PCI:0000:3b:00): {}, pid=1234, name=python\n"
    bad = nvidia.finding_of_log("other\n" + line.format(79) + line.format(79))
    assert bad.red and bad.said.startswith("79 on PCI:0000:3b:00 in")
    assert not nvidia.finding_of_log(line.format(31)).red  # a program's own fault
    assert not nvidia.finding_of_log(None).here


def test_rates_are_judged() -> None:
    name = "NVIDIA H100 80GB HBM3"
    assert not arithmetic.judged([7.0e14, 6.9e14], name).red
    assert "GPU 1 is slower" in arithmetic.judged([7.0e14, 5.0e14], name).said
    slow = arithmetic.judged([3.0e14, 3.0e14], name)
    assert slow.red and "of 989 stated" in slow.said
    assert not arithmetic.judged([1.0e13], "NVIDIA T4").red


def test_collectives_give_known_sums() -> None:
    found = collectives.check(0)
    assert not found.red and "2 processes, gloo: the known sums" in found.said


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import time; time.sleep(60)", "no answer in 1 s from 0, 1"),
        ("import sys; sys.exit(7)", "another sum"),
        ("import sys, time; sys.argv[1] == '1' and sys.exit(9); time.sleep(60)", "process 1 failed with status 9"),
    ],
)
def test_what_hangs_or_fails_is_ended(code: str, said: str) -> None:
    wrong = collectives.run_workers([sys.executable, "-c", code], 2, 1.0 if "no answer" in said else 20.0)
    assert wrong is not None and said in wrong


def test_again_without_p2p(monkeypatch: pytest.MonkeyPatch) -> None:
    def workers(command: Any, count: int, seconds: float, more: Any = None) -> str | None:
        return None if more == {"NCCL_P2P_DISABLE": "1"} else "no answer in 60 s from 0, 1"

    monkeypatch.setattr(collectives, "run_workers", workers)
    found = collectives.check(2)
    assert found.red and "set NCCL_P2P_DISABLE=1" in found.said


MOUNTS = (
    "overlay / overlay rw 0 0\n"
    "bucket /runs fuse.goofys rw 0 0\n"
    "server:/x /runs\\040far nfs4 rw 0 0\n"
    "/dev/nvme0n1 /runs/fast ext4 rw 0 0\n"
)


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/elsewhere", None),
        ("/runs/mine", "a bucket or other FUSE mount (fuse.goofys)"),
        ("/runs far/mine", "a network disk (nfs4)"),
        ("/runs/fast/mine", None),
        ("/runsother", None),
    ],
)
def test_what_stands_behind_a_folder(folder: str, kind: str | None) -> None:
    assert system.mount_of(Path(folder), MOUNTS) == kind


def test_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system.storage, "probe", lambda folder: 1e9)
    assert not system.disk(tmp_path / "not" / "yet").red
    assert system.disk(tmp_path, needed=10**18).red
    monkeypatch.setattr(system.storage, "probe", lambda folder: 1e6)
    assert "1.0 MB a second" in system.disk(tmp_path).said and system.disk(tmp_path).red
    monkeypatch.setattr(system, "mount_of", lambda folder, mounts: "a bucket or other FUSE mount (fuse)")
    assert system.disk(tmp_path).red


def test_shared_memory_limits_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small:
        total = 64 * 2**20

    monkeypatch.setattr(system.shutil, "disk_usage", lambda place: Small)
    monkeypatch.setattr(system.os.path, "isdir", lambda place: True)
    assert system.shared_memory(8).red and not system.shared_memory(1).red
    monkeypatch.setattr(system.resource, "getrlimit", lambda which: (256, 256))
    assert "ulimit -n 1024" in system.limits().said and system.limits().red
    monkeypatch.setattr(system, "_memory", lambda: 10**9)
    assert system.memory(2 * 10**9).red and not system.memory(10**8).red


def test_a_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    secret = "hf_" + "A1" * 17
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: secret)
    who = {"name": "someone", "auth": {"accessToken": {"role": "read", "displayName": "x"}}}
    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", lambda self: who)
    assert hub.token().said == "of someone, may read"

    def away(self: Any) -> Any:
        raise HfHubHTTPError.__bases__[0]("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", away)
    assert not hub.token().here

    def refused(self: Any) -> Any:
        error = RuntimeError(secret)
        error.response = type("Response", (), {"status_code": 401})  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", refused)
    found = hub.token()
    assert found.red and secret not in str(found)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no processes of its own."""
    monkeypatch.setattr(hub, "token", lambda: Finding("hub token", "none", here=False))
    monkeypatch.setattr(collectives, "check", lambda gpus: Finding("collectives", "right"))
    monkeypatch.setattr(system.storage, "probe", lambda folder: 1e9)


def test_on_a_cpu_what_needs_a_gpu_is_not_red(here: None, tmp_path: Path, tiny_base: Path) -> None:
    assert not torch.cuda.is_available()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    recipe = Recipe.model_validate(
        {"model": {"path": str(tiny_base)}, "data": {"sources": [{"path": str(rows)}]}, "output": str(tmp_path / "run")}
    )
    lines: list[str] = []
    assert run.run(recipe, lines.append) == 0
    assert [line for line in lines if line.startswith("-   GPUs") and line.endswith("not here")]
    names = [line[4:17].strip() for line in lines]
    assert {"versions", "kernels", "rate", "collectives", "limits", "disk", "model", "tokenizer", "data"} <= set(names)


def test_a_red_line_is_status_3(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "query", lambda: SOUND.replace(", Disabled", ", Enabled"))
    lines: list[str] = []
    assert run.run(None, lines.append) == ENVIRONMENT
    assert sum(line.startswith("red") for line in lines) == 1


def test_a_launch_on_bad_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "query", lambda: SOUND.replace("81559, 4, 0", "81559, 4, 12"))
    run.check_quickly()  # no GPU to torch: not asked
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="12 uncorrected ECC errors") as refused:
        launch._processes(launch.Launch())
    assert refused.value.status == ENVIRONMENT
