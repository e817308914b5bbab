"""Typed reading of a JSON object that other software wrote; all its mistakes in one error."""

from collections.abc import Mapping, Sequence

from jaxserve.errors import ConfigError


class Fields:
    """Reads keys of ``values``; every missing or mistyped one is collected, not raised.

    A reader returns a harmless placeholder for a key that is wrong, so that the caller can go on
    and ``raise_problems`` can name them all.  A key that is null counts as absent.
    """

    def __init__(
        self, values: Mapping[str, object], where: str, problems: list[str] | None = None
    ) -> None:
        self.values = values
        self.where = where
        self.problems: list[str] = [] if problems is None else problems

    def raise_problems(self) -> None:
        """Raise ConfigError naming everything that was wrong; do nothing if all was well."""
        if self.problems:
            raise ConfigError("; ".join(self.problems))

    def add(self, problem: str) -> None:
        """Note one more thing that is wrong."""
        self.problems.append(f"{self.where}: {problem}")

    def require(self, key: str) -> None:
        """Note ``key`` if it is absent."""
        if self.values.get(key) is None:
            self.add(f"{key} is missing, it is required")

    def wrong(self, key: str, value: object, wanted: str) -> None:
        """Note that ``key`` is ``value`` where ``wanted`` is needed."""
        self.add(f"{key} is {value!r}, {wanted} is needed")

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer; without ``default`` it is required."""
        value = self.values.get(key)
        if value is None:
            if default is None:
                self.require(key)
            return default or 1
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.wrong(key, value, "a positive integer")
            return 1
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number; without ``default`` it is required."""
        value = self.optional_number(key)
        if value is not None:
            return value
        if default is None:
            self.require(key)
        return default or 1.0

    def optional_number(self, key: str) -> float | None:
        """A positive number, or None where absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            self.wrong(key, value, "a positive number")
            return 1.0
        return float(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers, empty where absent."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or any(
            isinstance(item, bool) or not isinstance(item, int | float) for item in value
        ):
            self.wrong(key, value, "a list of numbers")
            return ()
        return tuple(float(item) for item in value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.wrong(key, value, "true or false")
            return default
        return value

    def choice(self, key: str, default: str, allowed: Sequence[str], prefix: str = "") -> str:
        """One of ``allowed``, which may be written with ``prefix`` in front."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str) or value.removeprefix(prefix) not in allowed:
            self.wrong(key, value, f"one of {', '.join(allowed)}")
            return default
        return value.removeprefix(prefix)

    def names(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        """A list of strings."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            self.wrong(key, value, "a list of strings")
            return default
        return tuple(value)

    def token_ids(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """One token id or a list of them; an explicit null means none at all."""
        if key not in self.values:
            return default
        value = self.values[key]
        if value is None:
            return ()
        ids = [value] if isinstance(value, int) else value
        if not isinstance(ids, list | tuple) or any(
            isinstance(item, bool) or not isinstance(item, int) or item < 0 for item in ids
        ):
            self.wrong(key, value, "a token id or a list of token ids")
            return default
        return tuple(ids)
