"""What reaches the terminal: no escape code that a file brought, no secret, no figure cut."""

from __future__ import annotations

import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Callable
from fcntl import ioctl

import pytest

from pipeline import console
from tests.conftest import ROOT

ESCAPE = "\x1b"
Terminal = Callable[..., str]


@pytest.fixture
def terminal() -> Terminal:
    """Run Python code on a terminal of its own; what the terminal got is returned."""

    def run(code: str, *, columns: int = 80, **environment: str) -> str:
        master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        plain = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "TERM", "COLUMNS"}}
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            cwd=ROOT, stdin=slave, stdout=slave, stderr=slave,
            env=plain | {"TERM": "xterm"} | environment,
        )  # fmt: skip
        os.close(slave)
        got = b""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if not select.select([master], [], [], 1)[0]:
                continue
            try:
                chunk = os.read(master, 65536)
            except OSError:  # the other side is closed
                chunk = b""
            if not chunk:
                break
            got += chunk
        else:
            process.kill()
        os.close(master)
        assert process.wait(10) == 0, got
        return got.decode().replace("\r\n", "\n")

    return run


SHOW_ALL = """
    import time
    from pipeline.console import say, show_progress, show_table, warn
    warn("a class that no row has")
    show_table(("task", "rows", "f1"), [("spam", 3900, 0.9979)], title="scores")
    with show_progress("embedding", 10, "texts") as advance:
        for _ in range(10):
            advance(1)
            time.sleep(0.02)
    say("done")
"""


def test_a_terminal_gets_colours_and_bars(terminal: Terminal) -> None:
    """The tests below would hold for a program that never uses any."""
    shown = terminal(SHOW_ALL)
    assert f"{ESCAPE}[33mwarning: a class that no row has{ESCAPE}[0m" in shown
    assert "embedding" in shown


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": "unknown"}])
@pytest.mark.parametrize("forced", [{}, {"FORCE_COLOR": "1"}])
def test_no_escape_codes_where_they_are_unwanted(
    environment: dict[str, str], forced: dict[str, str], terminal: Terminal
) -> None:
    shown = terminal(SHOW_ALL, **environment, **forced)
    assert ESCAPE not in shown
    assert "warning: a class that no row has" in shown
    assert "3,900" in shown


def test_an_empty_no_color_means_nothing(terminal: Terminal) -> None:
    assert ESCAPE in terminal(SHOW_ALL, NO_COLOR="")


@pytest.mark.parametrize("columns", [20, 40, 200])
def test_a_narrow_terminal_cuts_no_figure(columns: int, terminal: Terminal) -> None:
    shown = terminal(
        """
        from pipeline.console import show_table
        rows = [("validation", "sentiment", 3900, 0.98765, 1.0, None, 0.5)]
        show_table(("part", "task", "rows", "accuracy", "f1", "f1 macro", "roc auc"), rows)
        """,
        columns=columns,
        NO_COLOR="1",
    )
    (row,) = [line for line in shown.splitlines() if "validation" in line]
    assert row.split() == ["validation", "sentiment", "3,900", "0.9877", "1.0000", "–", "0.5000"]
    assert "…" not in shown


def test_a_long_name_is_folded_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    name = "".join(chr(ord("a") + number % 26) for number in range(300))
    console.show_table(("part", "task", "rows"), [("train", name, 3900), ("test", "b", 836)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 120, "the other rows must stay readable"
    assert "".join(re.sub(r"train|3,900|─", "", "".join(lines[3:-2])).split()) == name
    assert lines[-2].split() == ["test", "b", "836"]


HOSTILE = "a\x1b]0;title\x07\x1b[2Jb\rc\x9b31md\u202etxt.exe\tz\x7f"
SHOWN = r"a\x1b]0;title\x07\x1b[2Jb\rc\x9b31md\u202etxt.exe\tz\x7f"


def test_control_characters_are_shown_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    console.say(HOSTILE)
    console.warn(HOSTILE)
    console.show_table((HOSTILE, "n"), [(HOSTILE, 1)], title=HOSTILE)
    console.show_table(("", "n"), [("two\nlines", 1)])
    shown = capsys.readouterr().out
    assert not set(shown) & (set(map(chr, [*range(32), *range(127, 160), 0x202E])) - {"\n"})
    assert shown.count(SHOWN) == 5
    assert r"two\nlines" in shown


def test_names_are_no_markup(capsys: pytest.CaptureFixture[str], terminal: Terminal) -> None:
    console.show_table(("[red]a[/red]", "n"), [(":smile: [/x]", 1)], title="[b]:warning:")
    shown = capsys.readouterr().out
    for name in ("[red]a[/red]", ":smile: [/x]", "[b]:warning:"):
        assert name in shown
    bar = """
        import time
        from pipeline.console import show_progress
        with show_progress("fetching [/a].csv\\x1b[31m", 10, "bytes") as advance:
            advance(1)
            time.sleep(0.3)
    """
    shown = terminal(bar)
    assert "fetching [/a].csv\\x1b[31m" in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://host/a.csv?token=s3cret", "https://host/a.csv?…"),
        ("https://host/a.csv#s3cret", "https://host/a.csv#…"),
        ("https://host?s3cret", "https://host?…"),
        ("https://me:s3cret@host:8080/a/b@c.csv", "https://…@host:8080/a/b@c.csv"),
        ("https://s3cret@host", "https://…@host"),
        ("proxy socks5h://u:s3cret@[::1]:9 (refused)", "proxy socks5h://…@[::1]:9 (refused)"),
        (
            "'https://h/a?x=s3cret': no; https://h/b?y=s3cret.",
            "'https://h/a?…': no; https://h/b?….",
        ),
        ("https://host/a.csv", "https://host/a.csv"),
        ("https://host/a.csv?", "https://host/a.csv"),
        ("What? A #tag, me@home, a: //b?c", "What? A #tag, me@home, a: //b?c"),
    ],
)
def test_secrets_of_urls_are_not_shown(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert console.hide_secrets(text) == shown
    console.say(text)
    console.warn(text)
    assert capsys.readouterr().out == f"{shown}\nwarning: {shown}\n"


def test_a_whole_url_is_hidden_whatever_its_query_holds() -> None:
    assert console.hide_in_url("https://h/a.csv?x=a b'c\"d<e s3cret") == "https://h/a.csv?…"


def test_a_log_gets_a_line_of_progress_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline import console

    clock = iter([0.0, 1.0, 20.0, 21.0, 40.0, 41.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.show_progress("training", 10, "epochs") as advance:
        for _ in range(5):
            advance(2)
    captured = capsys.readouterr()
    assert captured.out == ""
    # After 20 s 4 of 10 are done, after 40 s 8; the last is no news.
    assert captured.err.splitlines() == [
        "training: 4 of 10 epochs, about 30 s left",
        "training: 8 of 10 epochs, about 10 s left",
    ]


@pytest.mark.parametrize(
    ("number", "shown"),
    [(1e-5, "1e-05"), (1.25e-6, "1.25e-06"), (0.00012, "0.00012"), (0.0239, "0.0239"),
     (0.5, "0.5000"), (0.0, "0.0000"), (12345.678, "12345.6780")],
)  # fmt: skip
def test_numbers_have_the_digits_that_tell_them_apart(number: float, shown: str) -> None:
    from pipeline.console import format_number

    assert format_number(number, 4) == shown
