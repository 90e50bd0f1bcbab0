"""Runs one program of a model's; what it may not use is gone first.

limits     processor seconds, memory, open files, size of a written file, processes; no core dump
landlock   (Linux 5.13 on) the file system is for reading, but for the program's own folder
seccomp    no sockets, no signals to others, no look into other processes

python -I jail.py PROGRAM SECONDS BYTES
"""

import ctypes
import os
import platform
import resource
import runpy
import struct
import sys

# By machine: AUDIT_ARCH, then the numbers of socket, kill, ptrace, process_vm_readv, process_vm_writev.
_CALLS = {
    "x86_64": (0xC000003E, (41, 62, 101, 310, 311)),
    "aarch64": (0xC00000B7, (198, 129, 117, 270, 271)),
}
# The same number everywhere: pidfd_send_signal, io_uring_setup (which opens sockets too).
_CALLS_OF_ALL = (424, 425)
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
# Landlock's rights that change something: write a file, remove, make of any kind (its first version's).
_WRITES = 1 << 1 | sum(1 << bit for bit in range(4, 13))
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _SECCOMP_FILTER = 38, 22, 2
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # _DENY gives EPERM
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06


def limit(seconds: float, memory: int) -> None:
    """Bounds that the kernel keeps, for this process and what it starts."""
    cpu = max(1, int(seconds) + 1)
    for what, most in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 2**24),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def no_new_processes() -> None:
    """Threads count as processes: a few are left, whatever else the user runs (root has no such limit)."""
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def only_own_folder(libc: ctypes.CDLL, folder: str) -> None:
    """Nothing outside ``folder`` can be written or removed; a kernel without Landlock leaves this to the user's rights."""
    attributes = ctypes.create_string_buffer(struct.pack("<Q", _WRITES))
    rules = libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(8), 0)
    if rules < 0:
        return
    place = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    rule = ctypes.create_string_buffer(struct.pack("<Qi", _WRITES, place))
    if libc.syscall(_LANDLOCK_ADD, rules, 1, rule, 0) or libc.syscall(_LANDLOCK_RESTRICT, rules, 0):
        raise OSError("landlock")
    os.close(place)
    os.close(rules)


def no_sockets(libc: ctypes.CDLL) -> None:
    """A filter of system calls that this process and its children can no longer take off."""
    architecture, numbers = _CALLS[platform.machine()]
    denied = (*numbers, *_CALLS_OF_ALL)
    many = len(denied)
    program = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, many + 1, 0, 0x40000000),  # x32's numbers for the same calls
        *((_EQUAL, many - at, 0, number) for at, number in enumerate(denied)),  # over the rest and _ALLOW
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _DENY),
    ]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(
        struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(packed)), struct.calcsize("<HxxxxxxQ")
    )
    if libc.prctl(_SET_SECCOMP, _SECCOMP_FILTER, header, 0, 0):
        raise OSError("seccomp")


def main() -> None:
    program, seconds, memory = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    libc = ctypes.CDLL(None, use_errno=True)
    limit(seconds, memory)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError("no_new_privs")
    only_own_folder(libc, os.path.dirname(program))
    no_sockets(libc)
    no_new_processes()
    sys.argv = [program]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
