"""What we write into Airflow's database fits there, and all of it is written through one function."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from airflow_team_authz.texts import TEXT_BYTES, fitting, fitting_reasons
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("size", [20, 500, TEXT_BYTES])
@pytest.mark.parametrize("part", ["a", "ß", "🚀", "\0", "\ud83d", "a🚀"])
def test_a_text_fits_and_is_cut_at_a_character(part: str, size: int) -> None:
    told = fitting(part * 70_000, size)
    assert size - 8 < len(told.encode()) <= size
    assert told.endswith(" … (cut)")
    assert "\0" not in told


@pytest.mark.parametrize("text", ["", "a" * TEXT_BYTES, "größe\n🚀"], ids=len)
def test_what_fits_is_as_it_was(text: str) -> None:
    assert fitting(text) == text


def test_few_reasons_are_told_and_of_many_how_many_more_there_are() -> None:
    assert fitting_reasons([]) == []
    assert fitting_reasons("abcdefghij") == list("abcdefghij")
    assert fitting_reasons("abcdefghijkl") == [*"abcdefghij", "and 2 more reasons"]


# The functions that make rows with texts.
_WRITTEN_IN = {
    "doors/audit_rows.py": {"_row"},  # a row of Airflow's, with no more in it than that had
    "doors/assets.py": {"_row"},
    "doors/pools.py": {"_warnings"},
    "doors/names.py": {"move"},  # tells names that have shorter columns of their own
}
_MODELS = {"Log", "ParseImportError", "DagWarning"}


def test_every_text_for_airflows_database_is_made_to_fit() -> None:
    """Rows come from the functions above; an import error is a call of ``with_lines``."""
    package = REPOSITORY / "airflow_team_authz"
    names = {str(file.relative_to(package)): ast.parse(file.read_text()) for file in package.rglob("*.py")}
    loose = [f"{name}:{line}" for name, tree in names.items() for line in _written(tree, _WRITTEN_IN.get(name, set()))]
    assert loose == []


def _written(node: ast.AST, functions: set[str]) -> Iterator[int]:
    """Lines that write something, apart from those in these functions."""
    if isinstance(node, ast.FunctionDef) and node.name in functions:
        return
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _MODELS:
        yield node.lineno
    if isinstance(node, ast.Assign) and ast.unparse(node).startswith("import_errors["):
        fits = ast.unparse(node.value).startswith("with_lines(")
        yield from () if fits else (node.lineno,)
    for child in ast.iter_child_nodes(node):
        yield from _written(child, functions)
