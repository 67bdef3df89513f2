"""The tree of errors: drawn as it is, and every leaf tells the operator what to do next."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from raidd import errors
from raidd.cli.main import app
from raidd.errors import ConfigInvalid, ImageRefused, MemberError, RaiddError

EXIT_CODES = {1, 4, 64}
"""Of commands other than status and check (operator.md): refused or failed, timeout, usage."""


def below(parent: type[RaiddError]) -> Iterator[type[RaiddError]]:
    """All classes of the module below `parent`, depth first, in the order they are written."""
    for child in parent.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from below(child)


ALL = list(below(RaiddError))
LEAVES = [one for one in ALL if not one.__subclasses__()]


def drawn() -> list[tuple[int, str, str]]:
    """The docstring's tree: depth, name, what it says of it."""
    found = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.fullmatch(r"    ((?:│   |    )*)[├└]── (\w+) *(.*)", line)
        if match:
            found.append((len(match[1]) // 4, match[2], match[3]))
    return found


def make(leaf: type[RaiddError], **given: str) -> RaiddError:
    if leaf is ConfigInvalid:
        return ConfigInvalid(["it went wrong"], **given)
    if leaf is ImageRefused:
        return ImageRefused("not-dicom", "it went wrong", **given)
    return leaf("it went wrong", **given)


def test_the_drawn_tree_is_the_real_one() -> None:
    depth: dict[type, int] = {RaiddError: -1}
    real = []
    for one in ALL:
        (parent,) = one.__bases__
        depth[one] = depth[parent] + 1
        real.append((depth[one], one.__name__))
    assert [(level, name) for level, name, _said in drawn()] == real


def test_the_drawn_tree_says_something_of_each() -> None:
    assert all(said for _level, _name, said in drawn())


def test_every_error_of_the_module_is_in_the_tree() -> None:
    classes = {one for _name, one in inspect.getmembers(errors, inspect.isclass) if one.__module__ == errors.__name__}
    assert classes == {RaiddError, *ALL}


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_leaf_has_a_next_step_of_its_own(leaf: type[RaiddError]) -> None:
    assert "next_step" in vars(leaf), "inherited: it cannot fit"
    step = leaf.next_step
    assert step.strip() == step
    assert 15 < len(step) < 160
    assert "\n" not in step


def test_no_two_leaves_send_the_operator_the_same_way() -> None:
    steps = [leaf.next_step for leaf in LEAVES]
    assert len(set(steps)) == len(steps)


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_leaf_ends_a_command_with_a_documented_code(leaf: type[RaiddError]) -> None:
    assert leaf.exit_code in EXIT_CODES


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_leaf_says_what_it_means(leaf: type[RaiddError]) -> None:
    assert len((leaf.__doc__ or "").splitlines()[0]) > 15


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_better_next_step_replaces_the_default_for_that_instance_only(leaf: type[RaiddError]) -> None:
    error = make(leaf)
    assert error.message == str(error) == "it went wrong"
    assert error.next_step == leaf.next_step
    better = make(leaf, next_step="Do this.")
    assert better.next_step == "Do this."
    assert leaf.next_step != "Do this."


def test_a_members_error_carries_the_member() -> None:
    assert MemberError("x", member="m").member == "m"


def test_all_faults_of_the_settings_are_in_the_message() -> None:
    error = ConfigInvalid(["a = 1: wrong", "b = 2: wrong"])
    assert error.faults == ("a = 1: wrong", "b = 2: wrong")
    assert error.message == "a = 1: wrong\nb = 2: wrong"


def literals() -> Iterator[tuple[Path, str]]:
    """All texts in raidd's source, docstrings left out (they may speak of what is to come)."""
    for path in sorted(Path(errors.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        alone = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in alone:
                yield path, node.value


def test_every_command_that_a_message_names_exists() -> None:
    """A next command works when it is pasted."""
    group: Any = get_command(app)
    verbs, catalog = set(group.commands), set(group.commands["catalog"].commands)
    named = [
        (path, first, second)
        for path, text in literals()
        for first, second in re.findall(r"\braidctl ([a-z][a-z-]*)(?: ([a-z]+))?", text)
        if not text[: text.index("raidctl")].endswith("raidd and ")  # "raidd and raidctl do not understand each other"
    ]
    assert len(named) > 30
    assert [name for name in named if name[1] not in verbs or (name[1] == "catalog" and name[2] not in catalog)] == []
