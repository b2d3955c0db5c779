"""Numeric types supported natively by this machine's processor."""

from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}


@cache
def computes_bfloat16() -> bool:
    """Return True if the CPU has bfloat16 instructions, or if that is unknown.

    Emulated, a step of eight tokens takes four times as long in bfloat16 as in float32, and a prefill six times.
    """
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.is_file() else []
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), None)
    return flags is None or not _BFLOAT16.isdisjoint(flags.split())
