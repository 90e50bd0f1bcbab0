"""Runs one program of a model's; what it may not use is gone first.

limits         processor seconds, memory (threads take some), open files, size of a written file; no core dump
landlock       (Linux 5.13 on) the file system is for reading, but for the program's own folder
capabilities   none, for root neither
seccomp        no sockets, no further processes, no signals to others, no look into other processes, and no change of
               what Landlock does not guard: a file's length by its name, owner, rights, times, attributes

python -I jail.py PROGRAM SECONDS BYTES
"""

import ctypes
import os
import platform
import resource
import runpy
import struct
import sys

# By machine: AUDIT_ARCH; clone, which makes threads and processes; capset; and what is denied: socket, kill, ptrace,
# process_vm_readv, process_vm_writev; fork, vfork; truncate, chmod, fchmod, fchmodat; chown, fchown, lchown, fchownat;
# utime, utimes, futimesat, utimensat; setxattr and removexattr, each also with l and f.
_CALLS = {
    "x86_64": (
        0xC000003E,
        56,
        126,
        (41, 62, 101, 310, 311, 57, 58, 76, 90, 91, 268, 92, 93, 94, 260, 132, 235, 261, 280)
        + (188, 189, 190, 197, 198, 199),
    ),
    "aarch64": (0xC00000B7, 220, 91, (198, 129, 117, 270, 271, 45, 52, 53, 55, 54, 88, 5, 6, 7, 14, 15, 16)),
}
# The same number everywhere: pidfd_send_signal, io_uring_setup (which opens sockets too), fchmodat2, setxattrat,
# removexattrat, file_setattr.
_CALLS_OF_ALL = (424, 425, 452, 463, 466, 469)
_CLONE3, _CLONE_THREAD = 435, 0x10000
_CAPABILITIES = 0x20080522  # the third version of capset's form
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
# Landlock's rights that change something: write a file, remove, make of any kind (its first version's).
_WRITES = 1 << 1 | sum(1 << bit for bit in range(4, 13))
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _SECCOMP_FILTER = 38, 22, 2
_ALLOW, _DENY, _ABSENT, _KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000  # EPERM; ENOSYS
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _MACHINE, _FIRST = 0, 4, 16  # places in what a filter sees of a call: its number, the machine, an argument


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


def no_capabilities(libc: ctypes.CDLL) -> None:
    """What root may do beyond its own files: mount, load modules, set the clock, change any file's owner."""
    header, none = struct.pack("<Ii", _CAPABILITIES, 0), bytes(24)
    if libc.syscall(_CALLS[platform.machine()][2], header, none):
        raise OSError("capset")


def only_own_folder(libc: ctypes.CDLL, folder: str) -> None:
    """Nothing outside ``folder`` can be written or removed; a kernel without Landlock leaves this
    to the user's rights."""
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


def only_harmless_calls(libc: ctypes.CDLL) -> None:
    """A filter of system calls that this process can no longer take off. Threads are made by clone: clone3, whose flags
    a filter cannot see, is said to be missing, and the C library then takes clone."""
    architecture, clone, _, numbers = _CALLS[platform.machine()]
    denied = (*numbers, *_CALLS_OF_ALL)
    steps: list[tuple[int, int | str, int | str, int]] = [
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 0, "kill", architecture),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, "deny", 0, 0x40000000),  # x32's numbers for the same calls
        *((_EQUAL, "deny", 0, number) for number in denied),
        (_EQUAL, "absent", 0, _CLONE3),
        (_EQUAL, 0, "allow", clone),
        (_LOAD, 0, 0, _FIRST),
        (_ANY_BIT, "allow", "deny", _CLONE_THREAD),
    ]
    ends = {"kill": _KILL, "deny": _DENY, "absent": _ABSENT, "allow": _ALLOW}
    places = {end: len(steps) + at for at, end in enumerate(ends)}
    program = [
        (code, *(to if isinstance(to, int) else places[to] - at - 1 for to in jumps), number)
        for at, (code, *jumps, number) in enumerate(steps)
    ] + [(_RETURN, 0, 0, value) for value in ends.values()]
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
    no_capabilities(libc)
    only_harmless_calls(libc)
    sys.argv = [program]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
