"""The socket's messages: stable shapes, and errors that arrive as they left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from raidd import api, errors
from raidd.errors import ConfigInvalid, ImageRefused, MemberAway, MemberError, RaiddError


def leaves(cls: type[RaiddError] = RaiddError) -> Iterator[type[RaiddError]]:
    yield cls
    for below in cls.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from leaves(below)


def example(cls: type[RaiddError]) -> RaiddError:
    if issubclass(cls, ConfigInvalid):
        return cls(["one", "two"])
    if issubclass(cls, ImageRefused):
        return cls("not-dicom", "this is not DICOM")
    return cls("what happened")


@pytest.mark.parametrize("cls", list(leaves()), ids=lambda cls: cls.__name__)
def test_every_error_arrives_as_it_left(cls: type[RaiddError]) -> None:
    sent = example(cls)
    got = api.to_error(api.ErrorReply.model_validate_json(api.error_reply(sent).model_dump_json()))
    assert type(got) is cls
    assert (got.message, got.next_step, got.exit_code) == (sent.message, sent.next_step, sent.exit_code)


def test_details_of_an_error_travel_along() -> None:
    refused = api.to_error(api.error_reply(ImageRefused("not-dicom", "no")))
    assert isinstance(refused, ImageRefused)
    assert refused.code == "not-dicom"
    away = api.to_error(api.error_reply(MemberAway("gone", member="m1", next_step="plug it in")))
    assert isinstance(away, MemberAway)
    assert (away.member, away.next_step) == ("m1", "plug it in")
    invalid = api.to_error(api.error_reply(ConfigInvalid(["a", "b"])))
    assert isinstance(invalid, ConfigInvalid)
    assert invalid.faults == ("a", "b")


def test_error_private_to_a_package_travels_as_its_public_base() -> None:
    class FileNotThere(MemberError):
        pass

    reply = api.error_reply(FileNotThere("no file", member="m1"))
    assert reply.error == "MemberError"
    assert type(api.to_error(reply)) is MemberError


def test_unknown_error_of_a_newer_daemon_keeps_its_message_and_exit_code() -> None:
    got = api.to_error(api.ErrorReply(error="Novel", message="m", next_step="n", exit_code=4))
    assert (type(got), got.message, got.next_step, got.exit_code) == (RaiddError, "m", "n", 4)


@pytest.mark.parametrize("cls", list(leaves()), ids=lambda cls: cls.__name__)
def test_every_error_has_an_http_error_status(cls: type[RaiddError]) -> None:
    assert 400 <= api.http_status(example(cls)) < 600


def test_replies_carry_unknown_keys_and_requests_refuse_them() -> None:
    progress = api.VerifyProgress.model_validate({"images_done": 1, "novel": 2})
    assert progress.model_dump()["novel"] == 2
    with pytest.raises(ValidationError):
        api.AddRequest.model_validate({"path": "/x", "sapre": True})


def test_status_has_the_keys_that_scripts_depend_on() -> None:
    """operator.md: add, never rename."""

    def holds(model: type[api.Reply], *keys: str) -> bool:
        return set(keys) <= set(model.model_fields)

    assert holds(
        api.Status,
        *("array", "members", "spares", "images", "inbox", "activities", "scrub", "alerts", "codec"),
    )
    assert holds(api.ArrayInfo, "name", "id", "level", "k", "m", "state", "failures_tolerated")
    assert holds(
        api.MemberInfo,
        *("slot", "state", "path", "uuid", "bay", "size_bytes", "used_bytes"),
        *("errors", "since", "reason", "model", "serial"),
    )
    assert holds(api.ImagesInfo, "count", "studies", "bytes", "raw_bytes", "unprotected")
    assert holds(api.InboxInfo, "waiting", "rejected", "last_stored_at")
    assert holds(api.Activity, "kind", "slot", "progress", "bytes_done", "bytes_total", "rate_mib_s", "eta_s")
    assert holds(api.AlertInfo, "code", "severity", "slot", "since", "message", "next", "silenced")
    assert holds(
        api.ImageInfo,
        *("sop_instance_uid", "version", "sha256", "size", "state", "received_at", "source", "study_instance_uid"),
        *("series_instance_uid", "patient_name", "patient_id", "responsible_person", "species", "breed", "modality"),
        *("study_date", "study_description"),
    )
