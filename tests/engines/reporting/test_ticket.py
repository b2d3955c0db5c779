"""Tickets: made by who has the secret, and by nobody else."""

from pathlib import Path

import pytest

from draftpick.engines.errors import ConfigError
from draftpick.engines.reporting.ticket import Ticket, read_secret

SECRET = "a secret of some length"
TICKET = Ticket("0123456789abcdef" * 2 + ".1", "http://10.0.0.1:9000")


def test_a_ticket_survives_its_header() -> None:
    assert Ticket.from_header(TICKET.to_header(SECRET), SECRET) == TICKET
    assert TICKET.lease_id == "0123456789abcdef" * 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        ";;",
        TICKET.to_header("another secret of length"),
        TICKET.to_header(SECRET).replace("10.0.0.1", "10.0.0.2"),
        TICKET.to_header(SECRET).replace(".1;", ".2;"),
        TICKET.to_header(SECRET)[:-1] + "é",
    ],
)
def test_a_forged_one_is_none(text: str) -> None:
    assert Ticket.from_header(text, SECRET) is None


def test_the_secret_comes_from_the_environment_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    assert read_secret({}) is None
    assert read_secret({"DRAFTPICK_REPORT_SECRET": SECRET}) == SECRET
    assert read_secret({"DRAFTPICK_REPORT_SECRET_FILE": str(tmp_path / "secret")}) == SECRET


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"DRAFTPICK_REPORT_SECRET": "short"}, "shorter than"),
        ({"DRAFTPICK_REPORT_SECRET_FILE": "/nowhere/secret"}, "not readable"),
    ],
)
def test_a_secret_that_is_none_ends_the_start(environment: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read_secret(environment)
