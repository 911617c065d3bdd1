"""Peak memory of a command with all its processes: measure_memory.py COMMAND [ARG...].

Adds up the memory of the command and everything that it started, many times a
second, and prints the largest sums when it ends. Linux only. There are two:

- Resident memory. Memory that processes share counts once for each that maps
  it, and not at all where none does.
- Memory in use: pages of files and of each process alone, and every file in
  memory (memfd) once, however many processes map it, and also if none does.
"""

import os
import subprocess
import sys
import time


def family(pid):
    yield pid
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as children:
                for child in children.read().split():
                    yield from family(int(child))
    except OSError:
        return  # it has ended


def status_kb(pid):
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as status:
            lines = (line.split() for line in status if line.startswith(("VmRSS", "Rss")))
            return {line[0].rstrip(":"): int(line[1]) for line in lines}
    except OSError:
        return {}


def memory_files(pid):
    """The files in memory that a process has open, with the bytes that they take."""
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for number in numbers:
        path = f"/proc/{pid}/fd/{number}"
        try:
            if os.readlink(path).startswith("/memfd:"):
                file = os.stat(path)
                yield (file.st_dev, file.st_ino), file.st_blocks * 512
        except OSError:
            continue  # it was closed


def sample(root):
    resident_kb, own_kb, files = 0, 0, {}
    for pid in family(root):
        status = status_kb(pid)
        resident_kb += status.get("VmRSS", 0)
        own_kb += status.get("RssAnon", 0) + status.get("RssFile", 0)
        files.update(memory_files(pid))
    return resident_kb, own_kb + sum(files.values()) // 1024


def main():
    since = time.perf_counter()
    with subprocess.Popen(sys.argv[1:]) as process:
        peak_resident_kb, peak_in_use_kb = 0, 0
        while process.poll() is None:
            resident_kb, in_use_kb = sample(process.pid)
            peak_resident_kb = max(peak_resident_kb, resident_kb)
            peak_in_use_kb = max(peak_in_use_kb, in_use_kb)
            time.sleep(0.02)
    elapsed = time.perf_counter() - since
    print(
        f"{elapsed:.1f} s, peak of all processes {peak_resident_kb / 1024:.0f} MiB resident,"
        f" {peak_in_use_kb / 1024:.0f} MiB in use",
        file=sys.stderr,
    )
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
