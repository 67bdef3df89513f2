"""The socket's paths, asked over a real Unix socket."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raidd import api, errors
from raidd.daemon import control
from raidd.daemon.streams import ImageContent, held_back
from raidd.errors import ImageUnreadable, MemberTimeout, RaiddError
from tests.support.control_socket import client, serving, socket_folder
from tests.support.fake_services import FakeServices, image_info, in_chunks, status

UID = "1.2.826.0.1.3680043.8.498.1"
DATA = bytes(range(256)) * 20_000  # 5 MB: more than the socket and uvicorn buffer


@pytest.fixture
def services() -> FakeServices:
    return FakeServices(contents={UID: DATA})


@pytest.fixture
def asking(services: FakeServices) -> Iterator[httpx.Client]:
    with socket_folder() as folder, serving(services, folder / "s"), client(folder / "s") as one:
        yield one


def raised(reply: httpx.Response) -> RaiddError:
    return api.to_error(api.ErrorReply.model_validate(reply.json()))


def collect(got: bytearray, reply: httpx.Response) -> None:
    for piece in reply.iter_bytes():
        got += piece


def leaves(cls: type[RaiddError] = RaiddError) -> list[type[RaiddError]]:
    below = [one for one in cls.__subclasses__() if one.__module__ == errors.__name__]
    return [leaf for one in below for leaf in leaves(one)] if below else [cls]


def an(cls: type[RaiddError]) -> RaiddError:
    special = {
        errors.ImageRefused: lambda: errors.ImageRefused("not-dicom", "no", next_step="drop another"),
        errors.ConfigInvalid: lambda: errors.ConfigInvalid(["a = 1", "b = 2"]),
    }
    return special.get(cls, lambda: cls("what happened", next_step="what to do"))()


# --- answers and errors


def test_status_is_what_the_services_say(asking: httpx.Client) -> None:
    assert api.Status.model_validate(asking.get(api.STATUS).json()) == status()


def test_a_search_arrives_with_all_its_words(asking: httpx.Client, services: FakeServices) -> None:
    found = asking.get(api.IMAGES, params={"words": ["rex", "müller"], "species": "dog", "limit": 7}).json()
    assert found["images"][0]["sop_instance_uid"] == UID
    assert services.calls == [("images", api.ImageSearch(words=["rex", "müller"], species="dog", limit=7))]


@pytest.mark.parametrize("cls", leaves(), ids=lambda cls: cls.__name__)
def test_every_error_comes_back_as_itself(asking: httpx.Client, services: FakeServices, cls: type[RaiddError]) -> None:
    services.fault = fault = an(cls)
    reply = asking.get(api.STATUS)
    back = raised(reply)
    assert reply.status_code == api.http_status(fault) >= 400
    assert type(back) is cls
    assert (back.message, back.next_step, back.exit_code) == (fault.message, fault.next_step, fault.exit_code)


def test_a_bug_is_an_error_reply_and_the_server_lives_on(asking: httpx.Client, services: FakeServices) -> None:
    services.fault = ZeroDivisionError("oops")
    reply = asking.get(api.STATUS)
    assert reply.status_code == 500
    assert "ZeroDivisionError" in raised(reply).message
    services.fault = None
    assert asking.get(api.STATUS).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", api.IMAGES + "?limit=0", None),
        ("GET", api.IMAGES + "?colour=red", None),
        ("POST", api.MEMBERS, {"path": "/x", "sparse": True}),
        ("POST", api.WAIT, {"timeout_s": -1}),
        ("POST", "/v1/slots/two/offline", None),
        ("POST", api.VERIFY, None),
    ],
)
def test_a_malformed_request_is_a_usage_error(asking: httpx.Client, method: str, path: str, body: object) -> None:
    reply = asking.request(method, path, json=body)
    assert reply.status_code == 422
    assert raised(reply).exit_code == 64


@pytest.mark.parametrize("body", [{}, {"uids": [UID], "all": True}])
def test_verify_takes_uids_or_all(asking: httpx.Client, body: object) -> None:
    assert isinstance(raised(asking.post(api.VERIFY, json=body)), errors.RequestRefused)


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/nothing"), ("DELETE", api.STATUS)])
def test_an_unknown_path_says_that_versions_may_differ(asking: httpx.Client, method: str, path: str) -> None:
    error = raised(asking.request(method, path))
    assert isinstance(error, errors.RequestUnknown)
    assert "versions" in error.next_step


def test_the_openapi_document_lists_every_path_of_the_api(asking: httpx.Client) -> None:
    paths = {value for name, value in vars(api).items() if name.isupper() and str(value).startswith("/v1/")}
    listed = set(asking.get(api.OPENAPI).json()["paths"])
    assert listed == paths - {api.OPENAPI}


def test_a_request_longer_than_the_limit_is_refused(asking: httpx.Client, services: FakeServices) -> None:
    reply = asking.post(api.VERIFY, content=b" " * (control.BODY_LIMIT + 1))
    assert reply.status_code == 413
    assert services.calls == []


def test_changes_reach_the_services_with_the_callers_name(asking: httpx.Client, services: FakeServices) -> None:
    asking.post(api.MEMBERS, json={"path": "/srv/x", "spare": True}).raise_for_status()
    asking.post("/v1/slots/3/replace", json={"path": "/srv/y", "dry_run": True}).raise_for_status()
    asking.post("/v1/slots/3/offline").raise_for_status()
    asking.post("/v1/slots/3/online").raise_for_status()
    asking.post(api.REBUILD, json={"action": "pause"}).raise_for_status()
    assert isinstance(raised(asking.post("/v1/slots/1/remove")), errors.RequestRefused)
    assert asking.get("/v1/slots/1/can-remove").json()["answer"] == "no"
    assert services.calls == [
        ("add", api.AddRequest(path="/srv/x", spare=True), "root"),
        ("replace", 3, api.ReplaceRequest(path="/srv/y", dry_run=True), "root"),
        ("offline", 3, "root"),
        ("online", 3, "root"),
        ("set_rebuild", api.RebuildRequest(action="pause"), "root"),
        ("remove", 1, "root"),
        ("can_remove", 1),
    ]


# --- an image's bytes


def test_content_is_the_exact_bytes_with_digest_and_version(asking: httpx.Client) -> None:
    reply = asking.get(f"/v1/images/{UID}/content", params={"version": 3})
    assert reply.content == DATA
    assert reply.headers[api.HEADER_VERSION] == "3"
    assert reply.headers["Content-Length"] == str(len(DATA))
    assert len(reply.headers[api.HEADER_SHA256]) == 64


def test_content_may_come_in_views_of_one_buffer_used_again(asking: httpx.Client, services: FakeServices) -> None:
    def refilled(data: bytes) -> Iterator[memoryview]:
        buffer = bytearray(70_000)
        for at in range(0, len(data), len(buffer)):
            piece = data[at : at + len(buffer)]
            buffer[: len(piece)] = piece
            yield memoryview(buffer)[: len(piece)]

    services.chunks = refilled
    assert asking.get(f"/v1/images/{UID}/content").content == DATA


@pytest.mark.parametrize("chunk", [len(DATA), len(DATA) - 1, 1 << 20, 300])
def test_a_digest_that_differs_at_the_end_leaves_the_body_incomplete(
    asking: httpx.Client, services: FakeServices, chunk: int
) -> None:
    def wrong_at_the_end(data: bytes) -> Iterator[bytes | memoryview]:
        yield from in_chunks(data, chunk)
        raise ImageUnreadable("SHA-256 differs")

    services.chunks = wrong_at_the_end
    if chunk == len(DATA):  # nothing was sent yet: a proper error
        assert isinstance(raised(asking.get(f"/v1/images/{UID}/content")), ImageUnreadable)
        return
    got = bytearray()
    with asking.stream("GET", f"/v1/images/{UID}/content") as reply, pytest.raises(httpx.RemoteProtocolError):
        collect(got, reply)
    assert len(got) < len(DATA)
    assert DATA.startswith(got)
    assert asking.get(api.STATUS).status_code == 200


def test_content_that_cannot_be_read_at_all_is_an_error_reply(asking: httpx.Client, services: FakeServices) -> None:
    def unreadable(_: bytes) -> Iterator[bytes]:
        raise ImageUnreadable("three members are away")
        yield b""

    services.chunks = unreadable
    reply = asking.get(f"/v1/images/{UID}/content")
    assert reply.status_code == 503
    assert isinstance(raised(reply), ImageUnreadable)


@pytest.mark.parametrize("uid", ["1.2/../../etc/passwd", "a b", "1.2%2F3", "ü\n", "content", "?&#"])
def test_a_uid_may_hold_anything(asking: httpx.Client, services: FakeServices, uid: str) -> None:
    services.contents[uid] = b"abc"
    assert asking.get(f"/v1/images/{quote(uid, safe='')}/content").content == b"abc"
    assert asking.get(f"/v1/images/{quote(uid, safe='')}").json()["sop_instance_uid"] == uid


def test_an_unknown_image_is_not_found(asking: httpx.Client) -> None:
    reply = asking.get("/v1/images/9.9/content")
    assert reply.status_code == 404
    assert isinstance(raised(reply), errors.ImageNotFound)


@given(st.lists(st.binary(max_size=9), max_size=9), st.integers(-3, 3), st.booleans())
def test_the_whole_size_is_never_given_out_before_the_end_was_good(chunks: list[bytes], off: int, fails: bool) -> None:
    data = b"".join(chunks)

    def source() -> Iterator[bytes]:
        yield from chunks
        if fails:
            raise ImageUnreadable("differs")

    size, got = max(0, len(data) + off), bytearray()
    try:
        for chunk in held_back(source(), size):
            got += chunk
        assert not fails
        assert got == data
        assert size == len(data)
    except ImageUnreadable:
        assert fails or size != len(data)
        assert len(got) < max(size, 1)


# --- lines


def lines(reply: httpx.Response) -> list[dict[str, object]]:
    assert reply.headers["Content-Type"].startswith(api.LINES_TYPE)
    return [json.loads(line) for line in reply.text.splitlines()]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("POST", api.VERIFY, {"all": True}), ("POST", api.WAIT, {"idle": True}), ("GET", api.CATALOG_CHECK, None)],
)
def test_a_long_request_gives_progress_and_then_one_last_line(
    asking: httpx.Client, method: str, path: str, body: object
) -> None:
    progress, last = lines(asking.request(method, path, json=body))
    assert (progress["done"], progress["waiting"], last) == (False, 1, {"done": True})


@pytest.mark.parametrize("fault", [errors.TimedOut("not idle"), ValueError("a bug")], ids=["refused", "bug"])
def test_an_error_amid_a_long_request_is_its_last_line(
    asking: httpx.Client, services: FakeServices, fault: Exception
) -> None:
    def failing() -> Iterator[api.Reply]:
        yield api.WaitProgress()
        raise fault

    services.steps = failing
    got = lines(asking.post(api.WAIT, json={}))
    assert len(got) == 2
    back = api.to_error(api.ErrorReply.model_validate(got[-1]))
    assert isinstance(back, errors.TimedOut if isinstance(fault, RaiddError) else RaiddError)
    assert str(fault) in back.message


def test_an_iterator_is_closed_when_its_client_goes_away(asking: httpx.Client, services: FakeServices) -> None:
    closed, stepping, go_on = threading.Event(), threading.Event(), threading.Event()

    def endless() -> Iterator[api.Reply]:
        try:
            yield api.WaitProgress()
            stepping.set()
            go_on.wait(30)  # amid a step, as on a slow disk
            yield api.WaitProgress()
        finally:
            closed.set()

    services.steps = endless
    with asking.stream("POST", api.WAIT, json={}) as reply:
        next(reply.iter_lines())
        assert stepping.wait(20)
    go_on.set()
    assert closed.wait(20)


def test_an_iterator_is_closed_when_its_client_stops_reading_and_goes(
    asking: httpx.Client, services: FakeServices
) -> None:
    """The answer is cancelled while it waits for the socket to take more."""
    closed = threading.Event()

    def endless() -> Iterator[bytes]:
        try:
            while True:
                yield bytes(1 << 20)
        finally:
            closed.set()

    services.contents["big"] = b""
    info = image_info("big", b"").model_copy(update={"size": 1 << 40})
    services.content = lambda *_: ImageContent(info, endless())  # type: ignore[method-assign]
    with asking.stream("GET", "/v1/images/big/content") as reply:
        next(reply.iter_raw())
    assert closed.wait(20)


def test_status_answers_while_calls_and_streams_hang(asking: httpx.Client, services: FakeServices) -> None:
    services.hold = threading.Event()
    with ThreadPoolExecutor(60) as pool:
        hanging = [pool.submit(asking.post, "/v1/slots/1/offline") for _ in range(control.CHANGES + 5)]
        hanging += [pool.submit(asking.get, "/v1/rebuild") for _ in range(control.LOOKS + 5)]
        try:
            while len(services.calls) < control.CHANGES + control.LOOKS:
                time.sleep(0.01)
            assert asking.get(api.STATUS).status_code == 200
        finally:
            services.hold.set()
        assert {one.result().status_code for one in hanging} == {200}


def test_a_members_error_keeps_its_member(asking: httpx.Client, services: FakeServices) -> None:
    services.fault = MemberTimeout("late", member="u1")
    back = raised(asking.get(api.STATUS))
    assert isinstance(back, MemberTimeout)
    assert back.member == "u1"


def test_held_back_closes_its_source_when_it_is_closed() -> None:
    closed = threading.Event()

    def source() -> Iterator[bytes]:
        try:
            yield from (b"a", b"b", b"c")
        finally:
            closed.set()

    chunks = held_back(source(), 3)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert closed.is_set()


def test_no_socket_file_is_left_behind() -> None:
    with socket_folder() as folder:
        with serving(FakeServices(), folder / "s"):
            assert Path(folder / "s").is_socket()
        assert list(folder.iterdir()) == []
