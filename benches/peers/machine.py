"""Whether the machine is idle, and what it is."""

import os
import platform
import time

TICKS = os.sysconf("SC_CLK_TCK")


def busy():
    """Seconds in which any core has computed since the machine started."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, interrupts, soft, stolen = (int(field) for field in file.readline().split()[1:9])
    return (user + nice + system + interrupts + soft + stolen) / TICKS


def wait_until_idle(most, share=0.03, windows=3, window=0.5):
    """Waits, `most` seconds at most, until everything together takes less than `share` of all cores for some windows in a row."""
    start, idle = time.monotonic(), 0
    while idle < windows and time.monotonic() - start < most:
        before = busy()
        time.sleep(window)
        taken = (busy() - before) / window / os.cpu_count()
        idle = idle + 1 if taken < share else 0
    return time.monotonic() - start


def processor():
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def flags():
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    return set()
