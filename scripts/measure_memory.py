"""Peak memory of a command with all its processes: measure_memory.py COMMAND [ARG...].

Adds up the resident memory of the command and everything that it started, many
times a second, and prints the largest sum when it ends. Linux only. Shared
memory counts once for each process that maps it, so the figure is never too low.
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


def resident_kb(pid):
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as status:
            lines = (line.split() for line in status if line.startswith("VmRSS"))
            return sum(int(line[1]) for line in lines)
    except OSError:
        return 0


def main():
    since = time.perf_counter()
    with subprocess.Popen(sys.argv[1:]) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(resident_kb, family(process.pid))))
            time.sleep(0.02)
    elapsed = time.perf_counter() - since
    print(f"{elapsed:.1f} s, peak of all processes {peak / 1024:.0f} MiB", file=sys.stderr)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
