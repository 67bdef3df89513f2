"""What the socket offers, made of the running parts: one method an endpoint (control.Services).

Thin: each method asks one part and puts the answer into the messages of api.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from raidd import api
from raidd.array.catalog import ImageQuery, ImageRow
from raidd.array.store import Store
from raidd.daemon import long_requests
from raidd.daemon.administration import Administration, Journal
from raidd.daemon.beginning import Beginning
from raidd.daemon.streams import ImageContent
from raidd.daemon.view import View, image_info
from raidd.errors import ImageNotFound
from raidd.inbox.batch import Ingest
from raidd.repair.jobs import Repairs


class Service:
    """Any thread."""

    def __init__(
        self,
        store: Store,
        view: View,
        repairs: Repairs,
        ingest: Ingest,
        administration: Administration,
        beginning: Beginning,
        journal: Journal,
    ) -> None:
        self._store, self._view, self._repairs = store, view, repairs
        self._ingest, self._administration = ingest, administration
        self._beginning, self._journal = beginning, journal

    # -- looking ------------------------------------------------------------------------------------------

    def status(self) -> api.Status:
        return self._view.status(self.inbox())

    def inbox(self) -> api.InboxInfo:
        return api.InboxInfo(
            waiting=self._waiting(),
            rejected=self._ingest.rejected,
            last_stored_at=self._ingest.last_stored_at or self._store.catalog.last_written_at(),
            reason=self._held_up(),
        )

    def _waiting(self) -> int:
        """A folder that cannot be read counts as one: something may wait there."""
        return self._ingest.waiting + len(self._ingest.denied)

    def _held_up(self) -> str:
        return self._beginning.waiting() or self._store.writable() or self._unreadable()

    def _unreadable(self) -> str:
        denied = sorted(self._ingest.denied)
        others = f" (and {len(denied) - 1} more)" if denied[1:] else ""
        return f"a folder cannot be read: {denied[0]}{others}" if denied else ""

    def images(self, search: api.ImageSearch) -> api.ImageList:
        query = ImageQuery(
            words=tuple(search.words),
            patient=search.patient,
            owner=search.owner,
            species=search.species,
            modality=search.modality,
            date_from=search.date_from,
            date_to=search.date_to,
            study=search.study,
            limit=search.limit + 1,
        )
        rows = self._store.catalog.search(query, away=self._store.membership.away())
        return api.ImageList(images=[image_info(r) for r in rows[: search.limit]], more=len(rows) > search.limit)

    def image(self, uid: str, version: int | None) -> api.ImageInfo:
        return image_info(self._row(uid, version))

    def _row(self, uid: str, version: int | None) -> ImageRow:
        row = self._store.catalog.image(uid, version, away=self._store.membership.away())
        if row is None:
            named = uid if version is None else f"{uid}, version {version}"
            raise self._not_found(f"no image has the SOP Instance UID {named}")
        return row

    def _not_found(self, message: str) -> ImageNotFound:
        """While the catalog is being made again, what it does not know may well exist."""
        unknown = self._beginning.unknown()
        if not unknown:
            return ImageNotFound(message)
        return ImageNotFound(f"{message} so far: {unknown}", next_step="Try again when it is done: raidctl status")

    def content(self, uid: str, version: int | None) -> ImageContent:
        row = self._row(uid, version)
        return ImageContent(image_info(row), self._store.read(row))

    def study_images(self, uid: str) -> api.ImageList:
        rows = self._store.catalog.study_images(uid, away=self._store.membership.away())
        if not rows:
            raise self._not_found(f"no study has the UID {uid}")
        return api.ImageList(images=[image_info(row) for row in rows])

    # -- long ---------------------------------------------------------------------------------------------

    def verify(self, request: api.VerifyRequest) -> Iterator[api.VerifyProgress | api.VerifyResult]:
        return long_requests.verify(self._store, request)

    def wait(self, request: api.WaitRequest) -> Iterator[api.WaitProgress | api.WaitResult]:
        return long_requests.wait(
            request,
            idle=lambda: self._beginning.over and self._ingest.idle_once(),
            waiting=self._waiting,
            repairs=self._repairs.queued,
            healthy=self._view.is_healthy,
            held_up=self._held_up,
        )

    def check_catalog(self) -> Iterator[api.CheckProgress | api.CheckResult]:
        return long_requests.check_catalog(self._store)

    # -- changing -----------------------------------------------------------------------------------------

    def add(self, request: api.AddRequest, *, actor: str) -> api.MemberReply:
        return self._administration.add(request, actor)

    def replace(self, slot: int, request: api.ReplaceRequest, *, actor: str) -> api.ReplaceReply:
        return self._administration.replace(slot, request, actor)

    def offline(self, slot: int, *, actor: str) -> api.MemberReply:
        return self._administration.offline(slot, actor)

    def online(self, slot: int, *, actor: str) -> api.MemberReply:
        return self._administration.online(slot, actor)

    def remove(self, slot: int, *, actor: str) -> api.MemberReply:
        return self._administration.remove(slot, actor)

    def can_remove(self, slot: int) -> api.CanRemove:
        return self._administration.can_remove(slot)

    def rebuild(self) -> api.RebuildStatus:
        return self._view.rebuild()

    def set_rebuild(self, request: api.RebuildRequest, *, actor: str) -> api.RebuildStatus:
        self._repairs.control(request.action, request.priority)
        self._journal(actor, "rebuild", (), request.model_dump(exclude_none=True))
        return self._view.rebuild()
