"""Disks that fail on demand, each with what it needs and how the fault is made."""

import errno
import os
import pathlib
import shutil
import signal
import subprocess
import threading
import time

ATTACH_SECONDS = 10
BALLAST = 64 << 10


class NotHere(Exception):
    """This fault cannot be made on this machine."""


class Disk:
    """A directory for the logs. `turn_on` makes it fail, `turn_off` mends it."""

    name = how = None
    mode = "process"
    # Whether nothing is acknowledged while it lasts, and whether anything is refused at all.
    stops_all = refuses = True
    # Whether it ends without a restart.
    ends = True

    def __init__(self, folder):
        self.folder = folder
        self.logs = folder / "logs"

    def turn_on(self, process):
        raise NotImplementedError

    def turn_off(self):
        raise NotImplementedError

    def prepare_restart(self):
        """The repair that an operator makes before a restart; the process has ended."""
        self.turn_off()

    def verify(self):
        """Returns what else was wrong."""
        return []

    def remove(self):
        pass


class Injected(Disk):
    """System calls of the process fail or wait, because strace is attached to it."""

    calls = effect = None

    def __init__(self, folder):
        super().__init__(folder)
        if not shutil.which("strace"):
            raise NotHere("strace is not installed")
        self.strace = None
        self.traces = []

    def turn_on(self, process):
        trace = self.folder / f"strace.{len(self.traces)}"
        self.traces.append(trace)
        names = ",".join(self.calls)
        self.strace = subprocess.Popen(
            ["strace", "-f", "-y", "-o", trace, "-e", f"trace={names}"]
            + ["-e", f"inject={names}:{self.effect}", "-p", str(process.pid)],
            stderr=subprocess.PIPE,
            text=True,
        )
        said = self.strace.stderr.readline()
        if "attached" not in said:
            raise NotHere(f"strace cannot attach: {said.strip()}")
        threading.Thread(target=self.strace.stderr.read, daemon=True).start()

    def turn_off(self):
        if self.strace is not None:
            self.strace.send_signal(signal.SIGINT)
            self.strace.wait(ATTACH_SECONDS)
            self.strace = None


class WritesFail(Injected):
    name = "writes-fail"
    how = "EIO from pwritev, pwrite64 and fallocate, injected by strace"
    calls, effect = ("pwritev", "pwrite64", "fallocate"), "error=EIO"


class RecordsFail(Injected):
    name = "records-fail"
    how = "EIO from pwritev, injected by strace: files can be created, but take no record"
    calls, effect = ("pwritev",), "error=EIO"


class SyncsFail(Injected):
    name = "syncs-fail"
    how = "EIO from fdatasync, injected by strace"
    mode = "power"
    calls, effect = ("fdatasync",), "error=EIO"

    def verify(self):
        lines = [line for trace in self.traces for line in trace.read_text().splitlines()]
        failed, again = set(), 0
        for line in lines:
            if "fdatasync(" in line and "<" in line:
                file = line.split("<", 1)[1].split(">", 1)[0].removesuffix(" (deleted)")
                again += file in failed
                if "INJECTED" in line:
                    failed.add(file)
        mistakes = [f"{again} syncs of a file whose sync had failed"] if again else []
        return mistakes if failed else mistakes + ["strace saw no sync"]


class SyncsAreSlow(Injected):
    name = "syncs-take-a-second"
    how = "each fdatasync and fsync begins a second late, by strace"
    mode = "power"
    stops_all = refuses = False
    calls, effect = ("fdatasync", "fsync"), "delay_enter=1000000"


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NotHere(f"{command[0]}: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout.strip()


class Mounted(Disk):
    """A tmpfs that something else fills up."""

    size = "24m"

    def __init__(self, folder):
        super().__init__(folder)
        if os.geteuid() != 0:
            raise NotHere("mounting needs root")
        self.room = folder / "tmpfs"
        self.room.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={self.size}", "tailwater-faults", self.room)
        self.filling = None
        self.stop = threading.Event()

    def fill(self):
        with open(self.room / "ballast", "ab", buffering=0) as ballast:
            while not self.stop.is_set():
                try:
                    ballast.write(bytes(BALLAST))
                except OSError as problem:
                    if problem.errno != errno.ENOSPC:
                        raise
                    # Space that Tailwater frees is filled, too.
                    time.sleep(0.01)

    def turn_on(self, process):
        self.stop.clear()
        self.filling = threading.Thread(target=self.fill, daemon=True)
        self.filling.start()

    def turn_off(self):
        if self.filling is not None:
            self.stop.set()
            self.filling.join()
            self.filling = None
            (self.room / "ballast").unlink()

    def remove(self):
        self.turn_off()
        subprocess.run(["umount", "--lazy", self.room], check=False)


class Full(Mounted):
    name = "full"
    how = "a tmpfs of 24 MiB, filled by another process"
    # Files that are there have room, and are used again.
    stops_all = False

    def __init__(self, folder):
        super().__init__(folder)
        self.logs = self.room / "logs"


class Ext4(Mounted):
    """An ext4 in a file on that tmpfs, on a loop device."""

    def __init__(self, folder):
        super().__init__(folder)
        self.image = self.room / "image"
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.logs = self.disk / "logs"
        try:
            run("truncate", "--size=512M", self.image)
            # Without a journal: one that cannot be written makes the file system read-only.
            run("mkfs.ext4", "-q", "-O", "^has_journal", "-E", "nodiscard", self.image)
            self.mount()
        except (NotHere, FileNotFoundError) as problem:
            self.remove()
            raise NotHere(problem) from None

    def mount(self):
        run("mount", "-o", "loop,errors=remount-ro", self.image, self.disk)

    def remove(self):
        subprocess.run(["umount", "--lazy", self.disk], check=False, capture_output=True)
        super().remove()


class Unprovisioned(Ext4):
    name = "device-fails"
    how = "EIO of a block device: a loop device whose backing file finds no space, as a thin volume"
    mode = "power"
    # Blocks that were used before can be written.
    stops_all = False
    size = "16m"


class ReadOnly(Ext4):
    name = "read-only"
    how = "ext4 makes itself read-only after an error (trigger_fs_error)"
    mode = "power"
    size = "256m"
    ends = False

    def __init__(self, folder):
        super().__init__(folder)
        device = pathlib.Path(run("findmnt", "-no", "SOURCE", self.disk))
        self.trigger = pathlib.Path(f"/sys/fs/ext4/{device.name}/trigger_fs_error")
        if not self.trigger.exists():
            self.remove()
            raise NotHere(f"no {self.trigger}")

    def turn_on(self, process):
        self.trigger.write_text("1")

    def turn_off(self):
        pass

    def prepare_restart(self):
        run("umount", self.disk)
        # 1: errors were corrected.
        code = subprocess.run(["e2fsck", "-p", self.image], capture_output=True).returncode
        if code > 1:
            raise RuntimeError(f"e2fsck: {code}")
        self.mount()


DISKS = [WritesFail, RecordsFail, SyncsFail, SyncsAreSlow, Full, Unprovisioned, ReadOnly]
