"""How the tests share two workers: those that use loop devices or must have the machine to themselves run in one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """`pytest -n 2 --dist loadgroup` keeps a group on one worker; a plain `pytest` does not care."""
    for item in items:
        if item.get_closest_marker("disks"):
            item.add_marker(pytest.mark.xdist_group("disks"))
