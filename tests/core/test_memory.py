"""What a step frees, the next one finds."""

import subprocess
import sys

import pytest

STEPS = """
import ctypes, resource
from core.memory import keep_freed_memory
if {keep} and not keep_freed_memory():
    raise SystemExit("no glibc")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    activations = [libc.malloc(2**23) for _ in range(8)]
    for array in activations:
        ctypes.memset(array, 1, 2**23)
    for array in activations:
        libc.free(array)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def page_faults(keep: bool) -> int:
    run = subprocess.run([sys.executable, "-c", STEPS.format(keep=keep)], capture_output=True, text=True)
    if "no glibc" in run.stderr:
        pytest.skip("this system has no glibc")
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_memory_of_a_step_is_there_for_the_next():
    assert page_faults(keep=True) < 100 < page_faults(keep=False)
