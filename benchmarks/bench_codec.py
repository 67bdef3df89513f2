"""How fast the codec is on this machine, each figure beside copying the same bytes in the same run.

    python benchmarks/bench_codec.py [--mib 32] [--repeat 5] [--geometry 4+2 …]

Rates are payload bytes a second (best of the repeats), on one thread. `ratio` is the rate over that of a plain copy of
the payload, so that figures from different machines and busy hours can be compared.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from raidd.codec.erasure import codec_name, erasure, self_test
from raidd.codec.geometry import MIB, Geometry, padded_length
from raidd.codec.segment import data_bodies, reseal, seal
from raidd.codec.shard import body_crcs, damaged_blocks, parse_prefix
from tests.support.sample_segment import sample_segment


def best_seconds(work: Callable[[], object], repeat: int) -> float:
    """The least wall time of ``repeat`` runs, after one that warms caches and pages."""
    work()
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def tasks(geometry: Geometry, payload_length: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """What a segment of this geometry goes through, by name."""
    code, padded = erasure(geometry), padded_length(payload_length, geometry.k)
    buffer = bytearray(Random(1).randbytes(padded))
    manifest = sample_segment(geometry, [b"x" * payload_length]).manifest
    data = data_bodies(memoryview(buffer), payload_length, geometry.k)
    parity = [memoryview(bytearray(len(data[0]))) for _ in range(geometry.m)]
    code.encode_into(data, parity)
    sealed = seal(manifest, [*data, *parity])
    shards = dict(enumerate([*data, *parity]))
    lost_one = {index: shards[index] for index in range(1, geometry.n)}
    lost_most = {index: shards[index] for index in range(geometry.m, geometry.n)}
    target, prefix = bytearray(padded), parse_prefix(sealed[0].prefix)

    def copy() -> None:
        target[:] = buffer

    yield "copy", copy
    yield "encode_into", lambda: code.encode_into(data, parity)
    yield "encode", lambda: code.encode(data)
    yield "reconstruct 1 shard", lambda: code.reconstruct(lost_one, [0])
    yield f"reconstruct {min(geometry.m, geometry.k)} data", lambda: code.reconstruct(lost_most, range(geometry.k))
    yield "CRC-32C of all bodies", lambda: [body_crcs(body) for body in shards.values()]
    yield "SHA-256 of the payload", lambda: hashlib.sha256(buffer).digest()
    yield "seal", lambda: seal(manifest, [*data, *parity])
    yield "verify data shards", lambda: [damaged_blocks(prefix, body) for body in data]
    yield "reseal 1 shard", lambda: reseal(prefix, geometry.n - 1, shards[geometry.n - 1])


def main() -> None:
    """Print one table a geometry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=float, default=32.0, help="payload size")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--geometry", nargs="*", default=["1+1", "2+1", "4+2", "5+3"])
    options = parser.parse_args()
    payload_length = int(options.mib * MIB)
    print(f"codec {codec_name()}, payload {options.mib:g} MiB; self-test {best_seconds(self_test, 3) * 1000:.0f} ms")
    for text in options.geometry:
        geometry = Geometry(*map(int, text.split("+")))
        copied = 0.0
        print(f"\n{geometry}{'':21}MB/s   ratio")
        for name, work in tasks(geometry, payload_length):
            rate = payload_length / best_seconds(work, options.repeat) / 1e6
            copied = copied or rate
            print(f"  {name:20}{rate:9.0f}  {rate / copied:6.3f}")


if __name__ == "__main__":
    main()
