"""``--config file.yaml``: flags in a file.  Those of the command line go before them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from jaxserve.errors import ConfigError

FLAG = "--config"


def expand(argv: Sequence[str]) -> list[str]:
    """``argv`` with the flags of its ``--config`` file in front, and without ``--config``.

    Raises:
        ConfigError: the file cannot be read, or is no mapping of flags to values.
    """
    path, rest = _take(argv)
    return rest if path is None else [*_arguments(path), *rest]


def _take(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    rest = list(argv)
    for i, argument in enumerate(rest):
        if argument == FLAG:
            if i + 1 == len(rest):
                raise ConfigError(f"{FLAG} needs a file: {FLAG} flags.yaml")
            return Path(rest[i + 1]), rest[:i] + rest[i + 2 :]
        if argument.startswith(f"{FLAG}="):
            return Path(argument.partition("=")[2]), rest[:i] + rest[i + 1 :]
    return None, rest


def _arguments(path: Path) -> Iterator[str]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{FLAG} {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{FLAG} {path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{FLAG} {path} must be lines such as `port: 30000`")
    for name, value in values.items():
        yield from _flag(f"--{str(name).replace('_', '-')}", value)


def _flag(flag: str, value: object) -> Iterator[str]:
    match value:
        case None | False:
            return
        case True:
            yield flag
        case list():
            yield flag
            yield from map(str, value)
        case dict():
            yield f"{flag}={json.dumps(value)}"
        case _:
            yield f"{flag}={value}"
