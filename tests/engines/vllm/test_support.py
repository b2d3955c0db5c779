"""The installed vLLM, read from its source."""

import sys
from pathlib import Path

import pytest

from draftpick.engines.vllm.support import installed_vllm, known_versions, methods_of, versions_with


@pytest.mark.parametrize(
    ("source", "methods"),
    [
        ('SpeculativeMethod = Literal["a", "b"]', {"a", "b"}),
        ('A = Literal["a"]\nB = Literal[A, "b"]\nSpeculativeMethod = Literal["c", B, A]', {"a", "b", "c"}),
        ('A = Literal["a"]\nSpeculativeMethod: TypeAlias = A | Literal["b"]', {"a", "b"}),
        ('A = Literal["a"]\nSpeculativeMethod = Union[A, Literal["b"]]', {"a", "b"}),
        ("SpeculativeMethod = Literal[Elsewhere]", None),
        ("SpeculativeMethod = str", None),
        ("", None),
    ],
)
def test_methods_are_read_from_the_type_of_vllm_s_option(source: str, methods: set[str] | None, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "speculative.py").write_text(source)
    assert methods_of(tmp_path) == methods


def test_a_vllm_without_the_file_has_unknown_methods(tmp_path: Path) -> None:
    assert methods_of(tmp_path) is None


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_they_are_those_that_vllm_itself_accepts() -> None:
    from typing import get_args

    from vllm.config.speculative import SpeculativeMethod

    installed = installed_vllm()
    assert installed is not None
    assert installed.methods == set(get_args(SpeculativeMethod))


def test_reading_them_imports_no_vllm() -> None:
    from subprocess import run

    code = (
        "import sys; from draftpick.engines.vllm.support import installed_vllm as i; i(); print('vllm' in sys.modules)"
    )
    assert run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_the_oldest_known_version_is_the_one_that_is_pinned_and_has_methods_of_every_kind() -> None:
    assert next(iter(known_versions())) == "0.29.0"
    assert {"ngram", "eagle3", "mtp", "dflash", "dspark", "custom_class"} <= known_versions()["0.29.0"].methods
    assert versions_with("dspark")[0] == "0.29.0"
    assert versions_with("sufix") == []
