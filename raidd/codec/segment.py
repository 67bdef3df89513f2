"""From a payload to shard files, and from the shards that are left to the one that was lost.

`seal` takes the k data bodies (views into the payload's buffer) and m parity bodies, computes the checksum tables,
puts their digests into the manifest, and makes each shard's prefix. Bodies are not copied: a `SealedShard` refers to
the caller's buffers, which must stay unchanged until every shard is durable.

`reseal` makes a lost shard's file again from any sibling's prefix and the reconstructed body, byte for byte, and
proves it: the new checksum table must be the one that the manifest listed when the segment was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from crc32c import crc32c

from raidd.codec.erasure import Buffer
from raidd.codec.geometry import BLOCK_SIZE, block_count, padded_length, round_up, shard_length
from raidd.codec.manifest import Manifest
from raidd.codec.shard import HEAD_SIZE, Head, Prefix, body_crcs, pack_prefix, table_digest
from raidd.errors import ShardDamaged


@dataclass(frozen=True, slots=True)
class SealedShard:
    """A shard file in two pieces: write ``prefix``, then ``body``. The body is the caller's memory."""

    index: int
    prefix: bytes | memoryview
    body: Buffer

    @property
    def file_length(self) -> int:
        """Bytes of the file."""
        return len(self.prefix) + len(self.body)


def data_bodies(payload: memoryview, payload_length: int, k: int) -> list[memoryview]:
    """k views of a payload buffer of at least `padded_length` bytes; what follows the payload is zeroed in place."""
    length, padded = shard_length(payload_length, k), padded_length(payload_length, k)
    if len(payload) < padded:
        raise ValueError(f"a buffer of {len(payload)} bytes; {padded} are needed")
    payload[payload_length:padded] = bytes(padded - payload_length)
    return [payload[start : start + length] for start in range(0, padded, length)]


def seal(manifest: Manifest, bodies: Sequence[Buffer], block_size: int = BLOCK_SIZE) -> list[SealedShard]:
    """The k+m shards of a segment, in order. ``manifest.tables`` is ignored and filled in.

    ``bodies``: k data, then m parity, each `shard_length` bytes, zero after the payload's end. ValueError for bodies
    of other lengths or number, padding that is not zero, or a manifest that breaks a limit.
    """
    _check_bodies(manifest, bodies)
    tables = [body_crcs(body, block_size) for body in bodies]
    packed = replace(manifest, tables=tuple(table_digest(table) for table in tables)).pack()
    manifest_offset = HEAD_SIZE + 4 * block_count(len(bodies[0]), block_size)
    head = Head(
        k=manifest.geometry.k,
        m=manifest.geometry.m,
        index=0,
        body_offset=round_up(manifest_offset + len(packed)),
        block_size=block_size,
        shard_length=len(bodies[0]),
        payload_length=manifest.payload_length,
        segment=manifest.segment,
        array=manifest.array,
        manifest_length=len(packed),
        image_count=len(manifest.images),
        table_crc=0,
        manifest_crc=crc32c(packed),
    )
    return [_sealed(head, index, tables[index], packed, body) for index, body in enumerate(bodies)]


def reseal(sibling: Prefix, index: int, body: Buffer) -> SealedShard:
    """Shard ``index`` of the sibling's segment, byte for byte as it was first written.

    ShardDamaged if the body is not the one whose table the manifest lists, or the sibling contradicts itself.
    """
    head = sibling.head
    if not 0 <= index < head.k + head.m or len(body) != head.shard_length:
        raise ValueError(f"shard {index} of {head.geometry} with a body of {len(body)} bytes")
    table = body_crcs(body, head.block_size)
    if sibling.manifest().tables[index] != table_digest(table):
        raise ShardDamaged(f"shard {index} of segment {head.segment}: what was decoded is not what was written")
    return _sealed(head, index, table, sibling.manifest_packed, body)


def _sealed(head: Head, index: int, table: bytes, packed: bytes, body: Buffer) -> SealedShard:
    own = replace(head, index=index, table_crc=crc32c(table))
    return SealedShard(index, pack_prefix(Prefix(own, table, packed)), body)


def _check_bodies(manifest: Manifest, bodies: Sequence[Buffer]) -> None:
    length = shard_length(manifest.payload_length, manifest.geometry.k)
    if len(bodies) != manifest.geometry.n or any(len(body) != length for body in bodies):
        raise ValueError(f"{manifest.geometry}: {manifest.geometry.n} bodies of {length} bytes are required")
    for index in range(manifest.payload_length // length, manifest.geometry.k):
        used = max(0, manifest.payload_length - index * length)
        if memoryview(bodies[index])[used:] != bytes(length - used):
            raise ValueError(f"data shard {index} is not zero after the payload's end")
