"""One event, one line, whatever the names in it."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raidd.daemon import logs
from raidd.daemon.logs import EventLog, LineFormatter, value
from raidd.errors import MemberFaulty

NASTY = [
    "a\nevent=forged",
    "\x1b[31mred",
    "a\r\nb",
    "\udcff\x00",
    "\u2028",
    "\u202egpj.exe",
    'say "hi"',
    "back\\slash",
    "",
]


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    stream = io.StringIO()
    logs.configure(logging.DEBUG, stream)
    yield stream
    logging.captureWarnings(False)
    root.handlers[:], logging.raiseExceptions = handlers, raising
    root.setLevel(level)


def test_an_event_is_a_line_with_time_severity_and_owner(out: io.StringIO) -> None:
    EventLog("inbox").warning("image-refused", code="not-dicom", name="a b.dcm", size=17)
    at, rest = out.getvalue().split(" ", 1)
    assert at.endswith("Z")
    assert rest == 'warning inbox event=image-refused code=not-dicom name="a b.dcm" size=17\n'


@pytest.mark.parametrize("name", NASTY, ids=ascii)
def test_a_name_cannot_forge_a_line_or_paint_a_screen(out: io.StringIO, name: str) -> None:
    EventLog("inbox").info("image-stored", name=name, end="yes")
    line = out.getvalue()
    assert line.count("\n") == 1
    assert line.endswith(" end=yes\n")
    assert line[:-1].isprintable()
    line.encode()  # no lone surrogates


@given(st.text())
def test_every_value_can_be_read_back(text: str) -> None:
    written = value(text)
    assert written.isprintable()
    bare = not written.startswith('"')
    assert (written if bare else written[1:-1].encode("latin-1", "backslashreplace").decode("unicode_escape")) == text


def test_an_error_says_its_class(out: io.StringIO) -> None:
    EventLog("array").error("member-out", slot=2, error=MemberFaulty("fsync returned EIO"))
    assert 'slot=2 error="MemberFaulty: fsync returned EIO"\n' in out.getvalue()


def test_records_of_libraries_and_their_tracebacks_are_lines_too(out: io.StringIO) -> None:
    try:
        raise ValueError("a\nb")
    except ValueError:
        logging.getLogger("library.error").exception("Exception in\n%s", "ASGI application")
    assert out.getvalue().count("\n") == 1
    assert ' error library.error event=library message="Exception in\\nASGI application" traceback=' in out.getvalue()


@pytest.mark.parametrize(
    ("level", "prefix"), [("debug", 7), ("info", 6), ("warning", 4), ("error", 3), ("critical", 2)]
)
def test_the_journal_gets_the_severity_as_a_prefix(level: str, prefix: int) -> None:
    record = logging.LogRecord("raidd.inbox", getattr(logging, level.upper()), "", 0, "x", None, None)
    record.raidd_fields = {"a": 1}
    assert LineFormatter(journal=True).format(record) == f"<{prefix}>inbox event=x a=1"


@pytest.mark.parametrize("attached", [True, False])
def test_only_a_stderr_that_is_the_journals_gets_prefixes(attached: bool) -> None:
    """$JOURNAL_STREAM names the stream's device and inode: a child whose stderr goes elsewhere inherits it in vain."""
    read, write = os.pipe()
    status = os.fstat(write)
    stream = f"{status.st_dev}:{status.st_ino if attached else status.st_ino + 1}"
    code = "from raidd.daemon import logs; logs.configure(); logs.EventLog('x').info('y')"
    with open(read, "rb") as reader, open(write, "wb") as writer:  # noqa: PTH123 (a descriptor)
        environ = {**os.environ, "JOURNAL_STREAM": stream}
        subprocess.run([sys.executable, "-c", code], stderr=writer, env=environ, check=True)
        writer.close()
        assert reader.read().startswith(b"<6>x event=y") is attached


def test_a_closed_stderr_does_not_raise() -> None:
    code = "import os; os.close(2)\nfrom raidd.daemon import logs; logs.configure(); logs.EventLog('x').error('y')"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_command_says_its_warnings_in_words_and_no_name_paints_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        logs.configure_notes()
        logging.getLogger("raidd.x").warning("the catalog was set aside as %s", "/a\x1b[31m\nnote: all is well")
        logging.getLogger("raidd.x").info("not shown")
    finally:
        logging.getLogger().handlers[:], level = before
        logging.getLogger().setLevel(level)
    assert capsys.readouterr().err == "note: the catalog was set aside as /a\\u001b[31m\\nnote: all is well\n"
