"""Time-ordered ids (UUIDv7, RFC 9562 section 5.7) for segments and images.

Layout of the 128 bits: 48 of Unix time in ms, 4 version, 12 random, 2 variant, 62 random. Taken without version and
variant they are one number of 48+74 bits; the next id is max(time and randomness, last + 1) in it. So an id is
always above the last one, also when the clock stands still or is set back, and its bytes sort as its time does.

The clock and the randomness are the caller's.
"""

from __future__ import annotations

from uuid import UUID

RANDOM_BITS = 74
TIME_LIMIT_MS = 253_402_300_800_000  # 10000-01-01: beyond it there is no date to make a path of

_LOW_BITS = 62
_LOW_MASK = (1 << _LOW_BITS) - 1
_MIDDLE_MASK = (1 << 12) - 1


def next_id(now_ms: int, last: UUID | None, random_bits: int) -> UUID:
    """A UUIDv7 strictly above ``last``. ``random_bits`` are 74. ValueError past the year 9999 or for a last not v7."""
    if now_ms < 0 or not 0 <= random_bits < 1 << RANDOM_BITS:
        raise ValueError(f"time {now_ms} ms, random bits {random_bits:#x}: out of range")
    number = now_ms << RANDOM_BITS | random_bits
    if last is not None:
        number = max(number, _number(last) + 1)
    if number >> RANDOM_BITS >= TIME_LIMIT_MS:
        raise ValueError("ids end with the year 9999")
    return _from_number(number)


def id_time_ms(segment: UUID) -> int:
    """Milliseconds since 1970 in a UUIDv7. ValueError for another kind, or a time past the year 9999."""
    number = _number(segment)
    if number >> RANDOM_BITS >= TIME_LIMIT_MS:
        raise ValueError(f"{segment}: its time is past the year 9999")
    return number >> RANDOM_BITS


def _number(identifier: UUID) -> int:
    """The id's 122 bits without version and variant."""
    value = identifier.int
    if value >> 76 & 0xF != 7 or value >> 62 & 0x3 != 2:
        raise ValueError(f"{identifier} is not a UUIDv7")
    return value >> 80 << RANDOM_BITS | (value >> 64 & _MIDDLE_MASK) << _LOW_BITS | value & _LOW_MASK


def _from_number(number: int) -> UUID:
    time_ms = number >> RANDOM_BITS
    middle = number >> _LOW_BITS & _MIDDLE_MASK
    return UUID(int=time_ms << 80 | 7 << 76 | middle << 64 | 2 << 62 | number & _LOW_MASK)
