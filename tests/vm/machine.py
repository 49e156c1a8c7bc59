"""One job in one emulated machine: boots it, streams what the job writes, brings its exit status home.

The root disk's changes are thrown away. Called by `lane`.
"""
import ctypes
import io
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time

import debian

# What boots: root file system -> its init, which starts `guest/agent`.
INITS = {
    "mini": "/vm/prepare",
    "docker": "/vm/prepare",
    "systemd": "/lib/systemd/systemd",
    "trixie": "/lib/systemd/systemd",
}

SWAP_BYTES = 64 << 20
KERNEL_ARGUMENTS = "console=ttyS0 quiet panic=-1 nokaslr mitigations=off no_timer_check cryptomgr.notests audit=0 random.trust_cpu=on net.ifnames=0"
TIMED_OUT, DIED = 124, 125
PR_SET_PDEATHSIG = 1


def pack(job, chosen):
    """Writes the job disk: a tar of what is copied and of the script that `guest/agent` runs."""
    lines = ["#!/bin/sh", f"mkdir -p {shlex.quote(chosen.cwd)} && cd {shlex.quote(chosen.cwd)} || exit 125"]
    for setting in chosen.env:
        name, equals, value = setting.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise debian.LaneError(f"--env {setting!r}: expected NAME=VALUE")
        lines.append(f"export {name}={shlex.quote(value)}")
    lines.append("exec " + shlex.join(chosen.command))
    script = ("\n".join(lines) + "\n").encode()
    with tarfile.open(job, "w") as archive:
        for item in chosen.copy:
            source, _, target = item.partition(":")
            if not os.path.exists(source):
                raise debian.LaneError(f"--copy {source}: no such file")
            archive.add(os.path.realpath(source), arcname=os.path.abspath(target or source).lstrip("/"))
        entry = tarfile.TarInfo("vm/job")
        entry.mode, entry.size = 0o755, len(script)
        archive.addfile(entry, io.BytesIO(script))
    os.truncate(job, -(-os.path.getsize(job) // 4096) * 4096)  # a disk has whole sectors


def command_line(chosen, work):
    """QEMU's arguments: ttyS0 is the console, ttyS1 the job's output, ttyS2 its exit status."""
    kernel = debian.kernel(chosen.kernel)
    words = [debian.program("qemu-system-x86_64"), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
             "-machine", "q35,smm=off", "-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-smp", "2", "-m", f"{chosen.memory}M",
             "-kernel", f"{kernel}/vmlinux", "-initrd", f"{kernel}/initrd",
             "-append", f"{KERNEL_ARGUMENTS} halsup.init={INITS[chosen.root]} {chosen.append}"]
    serials = [f"file,id=serial0,path={work}/console", "stdio,id=serial1,signal=off", f"file,id=serial2,path={work}/status"]
    for number, backend in enumerate(serials):
        words += ["-chardev", backend, "-device", f"isa-serial,chardev=serial{number},index={number}"]
    disks = [(debian.root(chosen.root), "snapshot=on"), (f"{work}/job", "readonly=on"), (f"{kernel}/modules.img", "readonly=on"),
             (f"{work}/swap", "snapshot=off")]
    for number, (image, how) in enumerate(disks):
        words += ["-drive", f"if=none,id=disk{number},file={image},format=raw,cache=unsafe,file.locking=off,{how}",
                  "-device", f"virtio-blk-pci,drive=disk{number}"]
    return words


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def stream(guest, timeout):
    """Copies the job's output until the guest is gone; says whether that was in time."""
    deadline = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        selector.register(guest.stdout, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            data = os.read(guest.stdout.fileno(), 65536)
            if not data:
                return True
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    return False


def last_lines(path, count=40):
    try:
        return "\n".join(open(path, errors="replace").read().replace("\r", "").splitlines()[-count:])
    except OSError:
        return "(nothing)"


def run_job(chosen):
    """Runs `chosen.command` in a guest and returns its exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the work directory is removed
    work = tempfile.mkdtemp(prefix="halsup-vm-")
    guest = None
    try:
        pack(f"{work}/job", chosen)
        with open(f"{work}/swap", "w") as swap:
            swap.truncate(SWAP_BYTES)
        with open(f"{work}/qemu", "w") as errors:
            guest = subprocess.Popen(command_line(chosen, work), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                                     env=dict(os.environ, TMPDIR=work), preexec_fn=die_with_parent)
        if not stream(guest, chosen.timeout):
            debian.say(f"timed out after {chosen.timeout:.0f} s; the console's last lines:\n{last_lines(f'{work}/console')}")
            return TIMED_OUT
        guest.wait()
        status = open(f"{work}/status").read().strip() if os.path.exists(f"{work}/status") else ""
        if not status.isdigit():
            debian.say(f"the guest died; the console's last lines:\n{last_lines(f'{work}/console')}\n{last_lines(f'{work}/qemu')}")
            return DIED
        return int(status)
    finally:
        if guest is not None and guest.poll() is None:
            guest.kill()
            guest.wait()
        if chosen.console and os.path.exists(f"{work}/console"):
            shutil.copy(f"{work}/console", chosen.console)
        shutil.rmtree(work, ignore_errors=True)
