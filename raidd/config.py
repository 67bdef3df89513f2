"""The settings: `raidd.toml` as frozen values, nested as the file is (``config.ingest.settle_s``).

Policy only. Which disks and slots there are lives on the labels and in ``state_dir``. Each field below is one key:
its default, and the rule that says what it accepts; `systemd/raidd.toml` explains each in plain words (a test
holds the two together).

Promises
- `load` accepts nothing it does not understand: an unknown key, a wrong type, a value out of range or two keys
  that contradict each other end in `ConfigInvalid`, which names *all* faults at once, each with key, value and
  what is accepted.
- A `Config` never changes; a reload makes another one.
- `run_dir` needs only its own key: raidctl finds the daemon also while another line of the file is wrong.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from raidd import config_rules as rules
from raidd.config_rules import Rule, Unaccepted
from raidd.errors import ConfigInvalid

DEFAULT_PATH: Final = Path("/etc/raidd/raidd.toml")
PATH_VARIABLE: Final = "RAIDD_CONFIG"

# ruff: noqa: RUF009  (_key makes an immutable field description)

# Tables of parts that are still to come. They may be there, so that one file can serve two versions.
NOT_YET_USED: Final = ("gateway.dicom", "gateway.http", "retention", "offsite")

_Table = TypeVar("_Table")


def _key(default: Any, rule: Rule) -> Any:
    return field(default=default, metadata={"rule": rule})


@dataclass(frozen=True, slots=True)
class Raidd:
    state_dir: Path = _key(Path("/var/lib/raidd"), rules.folder())
    run_dir: Path = _key(Path("/run/raidd"), rules.folder())
    inbox: Path = _key(Path("/srv/raidd/inbox"), rules.folder())
    spool: Path = _key(Path("/srv/raidd/spool"), rules.folder())


@dataclass(frozen=True, slots=True)
class Contact:
    name: str = _key("", rules.text())
    phone: str = _key("", rules.text())


@dataclass(frozen=True, slots=True)
class Ingest:
    settle_s: float = _key(2.0, rules.number(0, 3600))
    image_max_gib: float = _key(16.0, rules.number(0.001, 1024))
    keep_days: int = _key(0, rules.integer(0, 3650))


@dataclass(frozen=True, slots=True)
class Health:
    probe_interval_s: float = _key(5.0, rules.number(0.1, 3600))
    deadline_s: float = _key(30.0, rules.number(0.1, 600))
    error_count: int = _key(10, rules.integer(1, 1_000_000))
    error_window_s: float = _key(600.0, rules.number(1, 2_592_000))
    spare_delay_s: float = _key(15.0, rules.number(0, 86_400))
    missing_delay_s: float = _key(600.0, rules.number(0, 604_800))
    auto_replace: bool = _key(True, rules.flag())
    self_heal: bool = _key(True, rules.flag())
    smart_interval_s: float = _key(600.0, rules.number(10, 604_800))


@dataclass(frozen=True, slots=True)
class Repair:
    priority: str = _key("normal", rules.word("low", "normal", "high", "pause"))
    floor_mib_s: float = _key(8.0, rules.number(0, 100_000))
    rate_mib_s: float = _key(0.0, rules.number(0, 100_000))
    scrub_days: int = _key(30, rules.integer(1, 3650))
    scrub_window: str = _key("20:00-06:00", rules.window_or_none())


@dataclass(frozen=True, slots=True)
class Capacity:
    warn_days: int = _key(90, rules.integer(0, 3650))
    warn_percent: float = _key(85.0, rules.number(1, 100))
    reserve_percent: float = _key(1.0, rules.number(0, 50))
    state_reserve_mib: int = _key(1024, rules.integer(0, 1_048_576))


@dataclass(frozen=True, slots=True)
class Mail:
    """``from_`` is the key ``from``, which Python keeps for itself."""

    host: str = _key("", rules.text())
    port: int = _key(587, rules.integer(1, 65_535))
    security: str = _key("starttls", rules.word("starttls", "tls", "none"))
    username: str = _key("", rules.text())
    password_file: Path | None = _key(None, rules.file_or_none())
    from_: str = _key("", rules.address_or_none())
    to: tuple[str, ...] = _key((), rules.addresses())


@dataclass(frozen=True, slots=True)
class Buzzer:
    device: str = _key("auto", rules.word("auto", "pcspkr", "sound", "none"))
    command: tuple[str, ...] = _key((), rules.texts())
    quiet_hours: str = _key("", rules.window_or_none())


@dataclass(frozen=True, slots=True)
class Alerts:
    """``mail`` is None where the table is absent: no mail."""

    remind_h: float = _key(24.0, rules.number(0.1, 8760))
    weekly: str = _key("Mon 08:00", rules.weekly_or_none())
    urls: tuple[str, ...] = _key((), rules.urls())
    heartbeat_url: str = _key("", rules.web_url_or_none())
    escalate_to: tuple[str, ...] = _key((), rules.addresses_or_urls())
    mail: Mail | None = field(default=None, metadata={"table": Mail})
    buzzer: Buzzer = field(default=Buzzer(), metadata={"table": Buzzer})


@dataclass(frozen=True, slots=True)
class Metrics:
    listen: str = _key("127.0.0.1:9850", rules.listen())


@dataclass(frozen=True, slots=True)
class Config:
    """All settings. ``path`` is the file they came from; ``not_yet_used`` names tables that nothing reads so far."""

    raidd: Raidd = field(default=Raidd(), metadata={"table": Raidd})
    contact: Contact = field(default=Contact(), metadata={"table": Contact})
    ingest: Ingest = field(default=Ingest(), metadata={"table": Ingest})
    health: Health = field(default=Health(), metadata={"table": Health})
    repair: Repair = field(default=Repair(), metadata={"table": Repair})
    capacity: Capacity = field(default=Capacity(), metadata={"table": Capacity})
    alerts: Alerts = field(default=Alerts(), metadata={"table": Alerts})
    metrics: Metrics = field(default=Metrics(), metadata={"table": Metrics})
    path: Path | None = field(default=None, compare=False)
    not_yet_used: tuple[str, ...] = field(default=(), compare=False)

    @property
    def rejected(self) -> Path:
        """Where refused files go."""
        return _beside(self.raidd.inbox, "rejected")

    @property
    def stored(self) -> Path:
        """Where originals are kept for ``ingest.keep_days``."""
        return _beside(self.raidd.inbox, "stored")


def config_path(given: Path | str | None = None, environment: Mapping[str, str] = os.environ) -> Path:
    """The settings file: what was asked for, else $RAIDD_CONFIG, else /etc/raidd/raidd.toml; absolute."""
    return Path(given or environment.get(PATH_VARIABLE) or DEFAULT_PATH).absolute()


def load(path: Path) -> Config:
    """Read and check all of `path`. ConfigInvalid with every fault; a missing file is a fault, too."""
    config, faults = _check(_read(path), str(path))
    _raise_if([*faults, *_password_faults(config.alerts.mail)], path)
    return dataclasses.replace(config, path=path)


def parse(document: str, origin: str = "raidd.toml") -> Config:
    """Check a document without touching any file; `origin` stands before each fault."""
    config, faults = _check(document, origin)
    _raise_if(faults, origin)
    return config


def run_dir(path: Path) -> Path:
    """``raidd.run_dir`` alone, whatever else is wrong in the file; the default if only the default file is missing."""
    if path == DEFAULT_PATH and not path.exists():
        return Raidd().run_dir
    section = _toml(_read(path), str(path)).get("raidd", {})
    faults: list[str] = []
    only = {"run_dir": section["run_dir"]} if isinstance(section, dict) and "run_dir" in section else {}
    found = _table(Raidd, only, "raidd", faults)
    _raise_if(faults, path)
    return found.run_dir


# --- reading ----------------------------------------------------------------------------------------------------------


def _check(document: str, origin: str) -> tuple[Config, list[str]]:
    """The settings, and all their faults. Relations are judged over the good values, so none follows from another."""
    faults: list[str] = []
    tables = _toml(document, origin)
    not_yet_used = tuple(_take_not_yet_used(tables, faults))
    config = dataclasses.replace(_table(Config, tables, "", faults), not_yet_used=not_yet_used)
    return config, faults + _path_faults(config) + _relation_faults(config, tables)


def _raise_if(faults: Iterable[str], origin: object) -> None:
    if lines := [f"{origin}: {fault}" for fault in faults]:
        raise ConfigInvalid(lines)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigInvalid(
            [f"{path}: there is no such settings file"],
            next_step="raidctl init writes one; or name yours: --config FILE",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigInvalid([f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})"]) from error
    except OSError as error:
        raise ConfigInvalid(
            [f"{path}: cannot be read: {error.strerror}"], next_step=f"Check the file: ls -l {path}"
        ) from error


def _toml(document: str, origin: str) -> dict[str, Any]:
    try:
        return tomllib.loads(document)
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid([f"{origin}: is not valid TOML: {error}"]) from error


def _take_not_yet_used(document: dict[str, Any], faults: list[str]) -> Iterator[str]:
    """Remove the tables of parts to come from `document`; each must be a table."""
    for name in NOT_YET_USED:
        outer, _, inner = name.partition(".")
        holder = document.get(outer) if inner else document
        key = inner or outer
        if not isinstance(holder, dict) or key not in holder:
            continue
        value = holder.pop(key)
        if isinstance(value, dict):
            yield name
        else:
            faults.append(f"{name} = {_shown(key, value)}: must be a table, [{name}]")
    gateway = document.get("gateway")
    if isinstance(gateway, dict):
        faults.extend(
            _unknown(f"gateway.{key}", key, value, "gateway", ["dicom", "http"]) for key, value in gateway.items()
        )
        del document["gateway"]


def _table(cls: type[_Table], values: dict[str, Any], name: str, faults: list[str]) -> _Table:
    """Build `cls` from one TOML table; keys that are at fault keep their defaults, so that checking can go on."""
    fields = {_toml_key(f): f for f in dataclasses.fields(cls) if f.metadata}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for key, value in values.items():
        full = f"{name}.{key}" if name else key
        if key not in fields:
            faults.append(_unknown(full, key, value, name, list(fields)))
        elif (table := fields[key].metadata.get("table")) is None:
            _take_value(given, fields[key], full, value, faults)
        elif isinstance(value, dict):
            given[fields[key].name] = _table(table, value, full, faults)
        else:
            faults.append(f"{full} = {_shown(key, value)}: must be a table, [{full}]")
    return cls(**given)


def _take_value(given: dict[str, Any], key: dataclasses.Field[Any], full: str, value: Any, faults: list[str]) -> None:
    rule: Rule = key.metadata["rule"]
    try:
        given[key.name] = rule.read(value)
    except Unaccepted:
        faults.append(f"{full} = {_shown(full, value)}: must be {rule.accepted}")


def _toml_key(key: dataclasses.Field[Any]) -> str:
    return key.name.rstrip("_")


# --- what an error says -----------------------------------------------------------------------------------------------


def _unknown(full: str, key: str, value: Any, table: str, accepted: list[str]) -> str:
    place = f"[{table}] accepts {', '.join(accepted)}"
    if not table:
        place = "the tables are " + ", ".join(f"[{name}]" for name in [*accepted, *NOT_YET_USED])
    near = difflib.get_close_matches(key, accepted, n=1)
    elsewhere = [home for home, cls in _tables() if home != table and key in map(_toml_key, dataclasses.fields(cls))]
    hint = f"did you mean {near[0]}? " if near else f"it belongs in [{elsewhere[0]}]; " if elsewhere else ""
    return f"{full} = {_shown(key, value)}: unknown {'table' if isinstance(value, dict) else 'key'}; {hint}{place}"


def _tables(cls: Any = Config, name: str = "") -> Iterator[tuple[str, Any]]:
    for key in dataclasses.fields(cls):
        if "table" in key.metadata:
            full = f"{name}.{_toml_key(key)}" if name else _toml_key(key)
            yield full, key.metadata["table"]
            yield from _tables(key.metadata["table"], full)


def _shown(key: str, value: Any) -> str:
    """The value as the file has it, short; never what looks like a secret."""
    if any(word in key.lower() for word in ("password", "secret", "token")) and not key.endswith("password_file"):
        return "(not shown)"
    if isinstance(value, dict):
        return "{…}"
    if isinstance(value, bool):
        return "true" if value else "false"
    shown = f'"{value}"' if isinstance(value, str) else str(value)
    return shown if len(shown) <= 80 else shown[:79] + "…"


# --- keys that must agree ---------------------------------------------------------------------------------------------


def _path_faults(config: Config) -> list[str]:
    """Images dropped must never meet raidd's own files, nor one way in the other: each folder stands by itself."""
    own = {"raidd.state_dir": config.raidd.state_dir, "raidd.run_dir": config.raidd.run_dir}
    dropped = {
        "raidd.inbox": config.raidd.inbox,
        "raidd.spool": config.raidd.spool,
        '"<inbox>-rejected"': config.rejected,
        '"<inbox>-stored"': config.stored,
    }
    faults = [_overlap(a, dropped[a], b, own[b]) for a in dropped for b in own]
    names = list(dropped)
    faults += [_overlap(a, dropped[a], b, dropped[b]) for i, a in enumerate(names) for b in names[i + 1 :]]
    return [fault for fault in faults if fault]


def _overlap(a: str, path_a: Path, b: str, path_b: Path) -> str:
    if path_a.is_relative_to(path_b):
        return f'{a} = "{path_a}": must not be {b} ("{path_b}"), nor lie inside it'
    if path_b.is_relative_to(path_a):
        return f'{b} = "{path_b}": must not lie inside {a} ("{path_a}")'
    return ""


def _relation_faults(config: Config, document: Mapping[str, Any]) -> list[str]:
    faults = []
    repair, capacity, mail = config.repair, config.capacity, config.alerts.mail
    if 0 < repair.rate_mib_s < repair.floor_mib_s:
        faults.append(
            f"repair.rate_mib_s = {repair.rate_mib_s:g}: must be 0 (no cap) or at least "
            f"repair.floor_mib_s ({repair.floor_mib_s:g})"
        )
    if capacity.warn_percent > 100 - capacity.reserve_percent:
        faults.append(
            f"capacity.warn_percent = {capacity.warn_percent:g}: must be at most 100 - capacity.reserve_percent "
            f"({100 - capacity.reserve_percent:g}), or the array is full before it warns"
        )
    if mail is not None:
        faults += _mail_faults(document["alerts"]["mail"])
    elif any("://" not in target for target in config.alerts.escalate_to) and "mail" not in document.get("alerts", {}):
        faults.append("alerts.escalate_to: names a mail address, so [alerts.mail] must say how to send mail")
    return faults


def _mail_faults(given: Mapping[str, Any]) -> list[str]:
    """A mail table that cannot send mail is a promise broken in the night it matters."""
    return [
        f"alerts.mail.{key} = {_shown(key, given.get(key, empty))}: must be given where [alerts.mail] is there"
        for key, empty in (("host", ""), ("from", ""), ("to", []))
        if given.get(key, empty) == empty
    ]


def _password_faults(mail: Mail | None) -> list[str]:
    """Only what can be seen is judged: the file may belong to raidd alone, and the caller be somebody else."""
    if mail is None or mail.password_file is None:
        return []
    try:
        mode = mail.password_file.stat().st_mode
    except PermissionError:
        return []
    except OSError as error:
        return [f'alerts.mail.password_file = "{mail.password_file}": {error.strerror}']
    if mode & 0o007:
        return [
            f'alerts.mail.password_file = "{mail.password_file}": others can read it; chmod o= {mail.password_file}'
        ]
    return []


def _beside(inbox: Path, what: str) -> Path:
    return inbox.with_name(f"{inbox.name}-{what}")
