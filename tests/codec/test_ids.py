"""Time-ordered ids."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raidd.codec.ids import RANDOM_BITS, TIME_LIMIT_MS, id_time_ms, next_id

times = st.integers(0, TIME_LIMIT_MS - 2)
randoms = st.integers(0, (1 << RANDOM_BITS) - 1)
NOW = 1_795_507_200_000


def test_layout_is_that_of_the_example_in_rfc_9562_appendix_a6() -> None:
    random_bits = 0xCC3 << 62 | 0x18C4DC0C0C07398F
    assert next_id(0x017F22E279B0, None, random_bits) == UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f")


@settings(deadline=None)
@given(times, randoms)
def test_an_id_carries_its_time_version_and_variant(now_ms: int, random_bits: int) -> None:
    identifier = next_id(now_ms, None, random_bits)
    assert id_time_ms(identifier) == now_ms
    assert identifier.version == 7
    assert identifier.variant == "specified in RFC 4122"


@settings(deadline=None)
@given(times, randoms, times, randoms)
def test_ids_rise_whatever_the_clock_does(first_ms: int, first: int, second_ms: int, second: int) -> None:
    last = next_id(first_ms, None, first)
    following = next_id(second_ms, last, second)
    assert following > last
    assert following.bytes > last.bytes
    assert id_time_ms(following) >= second_ms


def test_a_clock_set_back_does_not_move_the_time_on() -> None:
    last = next_id(NOW, None, 7)
    following = next_id(NOW - 365 * 86_400_000, last, 99)
    assert id_time_ms(following) == NOW
    assert following.int == last.int + 1


def test_exhausted_randomness_carries_into_the_time() -> None:
    last = next_id(NOW, None, (1 << RANDOM_BITS) - 1)
    assert id_time_ms(next_id(NOW, last, 0)) == NOW + 1


@pytest.mark.parametrize(("now_ms", "random_bits"), [(-1, 0), (TIME_LIMIT_MS, 0), (0, -1), (0, 1 << RANDOM_BITS)])
def test_values_out_of_range_are_refused(now_ms: int, random_bits: int) -> None:
    with pytest.raises(ValueError, match=r"out of range|year 9999"):
        next_id(now_ms, None, random_bits)


def test_the_last_id_of_all_has_no_next() -> None:
    last = next_id(TIME_LIMIT_MS - 1, None, (1 << RANDOM_BITS) - 1)
    with pytest.raises(ValueError, match="year 9999"):
        next_id(NOW, last, 0)


def test_other_uuids_have_no_time() -> None:
    with pytest.raises(ValueError, match="not a UUIDv7"):
        id_time_ms(uuid4())
    with pytest.raises(ValueError, match="year 9999"):
        id_time_ms(UUID("ffffffff-ffff-7fff-bfff-ffffffffffff"))
