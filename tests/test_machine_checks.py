"""The habits that a machine can hold: sizes, imports, probing, broad excepts, tested messages."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("jaxserve", "pallas_kernels")
FOLDERS = (*PACKAGES, "tests", "scripts", "benchmarks")

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400
# "file" or "file::function" -> (lines allowed, reason)
LONGER: dict[str, tuple[int, str]] = {
    "pallas_kernels/xla.py::paged_extend_attention": (120, "a kernel: kernels may have 120"),
}
# The only places that may catch everything: each logs once and maps to a named error.
BROAD_EXCEPTS = {"jaxserve/engine.py": 1, "jaxserve/server/app.py": 1}
# The only file that may import inside functions: `--help` must answer at once.
LAZY_IMPORTS = {"jaxserve/launch.py"}

# Shorter runs of a message ("must be") say nothing about which message it is.
MIN_WINDOW_CHARS = 8
# Three words of a message that no input brings about -> why it is raised all the same.
UNREACHABLE = {"plans none of": "a defect of the scheduler would otherwise be a busy loop"}

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
each_file = pytest.mark.parametrize("path", FILES, ids=name_of)
each_package_file = pytest.mark.parametrize(
    "path", [path for path in FILES if name_of(path).split("/")[0] in PACKAGES], ids=name_of
)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, FUNCTIONS))


@each_file
def test_files_and_functions_stay_short(path: Path) -> None:
    name = name_of(path)
    num_lines = len(path.read_text().splitlines())
    allowed = LONGER.get(name, (MAX_FILE_LINES, ""))[0]
    assert num_lines <= allowed, f"{name} has {num_lines} lines, {allowed} allowed: split by noun"
    for function in functions(path):
        length = (function.end_lineno or 0) - function.lineno + 1
        allowed = LONGER.get(f"{name}::{function.name}", (MAX_FUNCTION_LINES, ""))[0]
        assert length <= allowed, f"{name}::{function.name} has {length} lines, {allowed} allowed"


def test_every_exception_to_the_sizes_is_needed_and_has_a_reason() -> None:
    for key, (_, reason) in LONGER.items():
        name, _, function = key.partition("::")
        assert reason and (ROOT / name).is_file(), key
        assert not function or function in {f.name for f in functions(ROOT / name)}, key


@each_file
def test_imports_are_at_the_top(path: Path) -> None:
    if name_of(path) in LAZY_IMPORTS:
        return
    for function in functions(path):
        for node in ast.walk(function):
            assert not isinstance(node, ast.Import | ast.ImportFrom), (
                f"{name_of(path)}:{node.lineno} imports inside a function"
            )
    names = {node.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name)}
    assert "TYPE_CHECKING" not in names, "a type wanted upwards belongs in the vocabulary"


@each_file
def test_no_globals_no_mixins_no_probing(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        assert not isinstance(node, ast.Global), f"{name_of(path)}:{node.lineno} uses global"
        if isinstance(node, ast.ClassDef):
            assert not node.name.endswith("Mixin"), f"{node.name}: compose, never mix in"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            is_probe = node.func.id in {"hasattr", "getattr", "setattr"} and len(node.args) > 1
            literal = is_probe and isinstance(node.args[1], ast.Constant)
            assert not literal, f"{name_of(path)}:{node.lineno} probes with {node.func.id}"


@each_package_file
def test_no_module_level_container_waits_to_be_filled(path: Path) -> None:
    for node in tree_of(path).body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        is_empty = isinstance(value, ast.List | ast.Set) and not value.elts
        is_empty |= isinstance(value, ast.Dict) and not value.keys
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
            is_empty |= value.func.id in {"list", "dict", "set", "deque"} and not value.args
        assert not is_empty, f"{name_of(path)}:{node.lineno}: state belongs to an object"


@each_package_file
def test_broad_excepts_are_only_where_they_are_listed(path: Path) -> None:
    handlers = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ExceptHandler)]
    lines = [handler.lineno for handler in handlers if is_broad(handler.type)]
    assert len(lines) <= BROAD_EXCEPTS.get(name_of(path), 0), f"{name_of(path)}: lines {lines}"


def is_broad(caught: ast.expr | None) -> bool:
    names = (
        {node.id for node in ast.walk(caught) if isinstance(node, ast.Name)} if caught else set()
    )
    return caught is None or bool(names & {"Exception", "BaseException"})


# --- every message of a raise is tested -------------------------------------------------------


def constant_pieces(node: ast.expr) -> list[str]:
    """The fixed pieces of a message: ``f"got {x} of {y}"`` -> ``["got ", " of "]``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return [part.value for part in node.values if isinstance(part, ast.Constant)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return constant_pieces(node.left) + constant_pieces(node.right)
    return []


def raised_messages(path: Path) -> Iterator[tuple[int, list[str]]]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            pieces = constant_pieces(node.exc.args[0])
            if pieces:
                yield node.lineno, pieces


def windows(piece: str) -> Iterator[str]:
    """Runs of three words of a piece; all of it when it is shorter."""
    words = piece.split()
    for start in range(max(1, len(words) - 2)):
        yield " ".join(words[start : start + 3])


@cache
def quoted_text() -> str:
    """All string literals of the tests, without the backslashes of ``match=`` patterns."""
    literals: list[str] = []
    for path in sorted(set((ROOT / "tests").rglob("*.py")) - {Path(__file__)}):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                literals.append(node.value)
    return " ".join("\n".join(literals).replace("\\", "").split())


@each_package_file
def test_every_raised_message_is_quoted_in_a_test(path: Path) -> None:
    untested: list[str] = []
    for line, pieces in raised_messages(path):
        telling = [w for piece in pieces for w in windows(piece) if len(w) >= MIN_WINDOW_CHARS]
        is_exempt = any(window in UNREACHABLE for window in telling)
        if telling and not is_exempt and not any(window in quoted_text() for window in telling):
            untested.append(f"{name_of(path)}:{line}: {' … '.join(pieces)}")
    assert not untested, "no test quotes three words of:\n" + "\n".join(untested)


# --- every tracked file -----------------------------------------------------------------------

# Written so that no pattern matches its own line.
UNWANTED = {
    "a package registry's host": r"py[p]i\.(org|io|python)|python[h]osted|registry\.npm",
    "a path of somebody's machine": r"(?<![\w.~])/(home|root|Users|work|tmp/work)/\w",
    "an unfinished note": r"\b(TO[D]O|FI[X]ME|XX[X])\b",
}


def test_tracked_files_are_free_of_hosts_machine_paths_and_unfinished_notes() -> None:
    listing = subprocess.run(
        ["git", "ls-files", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode:
        pytest.skip("not a git checkout")
    found: list[str] = []
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        try:
            text = path.read_text()
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # a picture, or deleted in the working tree
        for what, pattern in UNWANTED.items():
            found += [f"{name}: {what}: {m.group()}" for m in re.finditer(pattern, text)]
    assert not found, "\n".join(found)
