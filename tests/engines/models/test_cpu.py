from pathlib import Path

import pytest

import draftpick.engines.models.cpu
from draftpick.engines.models.cpu import computes_bfloat16


@pytest.mark.parametrize(
    ("cpuinfo", "able"),
    [
        ("model name : x\nflags\t\t: fpu avx2\nflags\t\t: fpu avx2\n", False),
        ("flags\t\t: fpu avx2 avx512_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("Features\t: fp asimd\n", False),
        ("", True),
        (None, True),
    ],
)
def test_what_the_processor_says(
    cpuinfo: str | None, able: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    monkeypatch.setattr(draftpick.engines.models.cpu, "_CPUINFO", file)
    computes_bfloat16.cache_clear()
    assert computes_bfloat16() is able
    computes_bfloat16.cache_clear()
