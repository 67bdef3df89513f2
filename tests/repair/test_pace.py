"""How long a repair rests: the share, the floor, the cap, and zeros, which the settings accept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raidd.repair.pace import MIB, Pace, Priority


def test_an_idle_array_is_repaired_at_full_speed() -> None:
    assert Pace("low", 8, 0).delay_s(MIB, 1.0, busy=False) == 0


@pytest.mark.parametrize(("priority", "rest_s"), [("low", 3.0), ("normal", 1.0), ("high", 0.0)])
def test_a_busy_array_is_repaired_for_a_share_of_the_time(priority: str, rest_s: float) -> None:
    assert Pace(priority, 0, 0).delay_s(MIB, 1.0, busy=True) == pytest.approx(rest_s)  # type: ignore[arg-type]


def test_the_floor_shortens_the_rest() -> None:
    assert Pace("low", 8, 0).delay_s(16 * MIB, 1.0, busy=True) == pytest.approx(1.0)


def test_below_the_floor_there_is_no_rest() -> None:
    assert Pace("low", 8, 0).delay_s(MIB, 1.0, busy=True) == 0


def test_the_cap_holds_even_when_idle() -> None:
    assert Pace("high", 8, 2).delay_s(6 * MIB, 1.0, busy=False) == pytest.approx(2.0)


def test_of_share_and_cap_the_longer_rest_counts() -> None:
    assert Pace("normal", 0, 1).delay_s(4 * MIB, 1.0, busy=True) == pytest.approx(3.0)
    assert Pace("low", 0, 100).delay_s(4 * MIB, 1.0, busy=True) == pytest.approx(3.0)


def test_a_paused_pace_can_be_asked() -> None:
    assert Pace("pause", 8, 0).delay_s(MIB, 1.0, busy=True) == 0


PRIORITIES = st.sampled_from(["low", "normal", "high", "pause"])
SPEED = st.floats(0, 10_000)


@given(PRIORITIES, SPEED, SPEED, st.integers(0, 1 << 40), st.floats(0, 1e6), st.booleans())
def test_a_rest_is_never_negative_and_keeps_floor_and_cap(
    priority: Priority, floor: float, cap: float, done: int, took_s: float, busy: bool
) -> None:
    """What the settings accept: a cap is 0 or not below the floor."""
    cap = 0 if cap < floor or cap < 1e-3 else cap
    rest = Pace(priority, floor, cap).delay_s(done, took_s, busy=busy)
    assert rest >= 0
    whole = took_s + rest
    if cap:
        assert done / MIB <= cap * whole * (1 + 1e-6) + 1e-6
    if floor > 1e-3 and rest > 0 and not cap:
        assert done / MIB >= floor * whole * (1 - 1e-6) - 1e-6
    if not busy and not cap:
        assert rest == 0
