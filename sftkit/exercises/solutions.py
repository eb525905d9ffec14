"""The solution stripper: what stands between nbgrader's markers becomes placeholders."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from sftkit.errors import SftkitError


def strip_solutions(source: str) -> str:
    """Replace each solution in a cell by placeholders.

    A solution stands between nbgrader's marker lines, `### BEGIN SOLUTION` and
    `### END SOLUTION`. Names assigned in it, at any depth but not inside its functions, become
    `name = ...` at the block's indentation; names that start with an underscore are the
    solution's own helpers and vanish. A block that assigns no name becomes `...`.

    Args:
        source: Source of one code cell.

    Returns:
        The source without solutions; equal to `source` if it has no markers.

    Raises:
        SftkitError: A marker is misspelt, missing or nested (a solution would be shown), or
            the solution is not plain Python.
    """
    stripped: list[str] = []
    block: list[str] | None = None
    for number, line in enumerate(source.splitlines(keepends=True), start=1):
        marker = _marker(line, number)
        if marker == "BEGIN" and block is None:
            block = []
        elif marker == "END" and block is not None:
            stripped.append(_placeholders(block, number))
            block = None
        elif marker:
            raise SftkitError(f"Line {number}: {line.strip()!r} has no partner before it.")
        else:
            (stripped if block is None else block).append(line)
    if block is not None:
        raise SftkitError("The last '### BEGIN SOLUTION' has no '### END SOLUTION' after it.")
    # A last marker without a line break must not leave one behind.
    return "".join(stripped) if source.endswith("\n") else "".join(stripped).removesuffix("\n")


def has_solution(source: str) -> bool:
    """Say whether a cell's source holds a solution block.

    Raises:
        SftkitError: A line looks like a marker and is not one.
    """
    return any(_marker(line, n) for n, line in enumerate(source.splitlines(), start=1))


def _marker(line: str, number: int) -> str:
    """Name the marker on a line: BEGIN, END, or nothing."""
    text = line.strip()
    if text in ("### BEGIN SOLUTION", "### END SOLUTION"):
        return text.split()[1]
    if re.match(r"#+\s*(begin|end)\W*solutions?\b", text, re.IGNORECASE):
        raise SftkitError(
            f"Line {number}: {text!r} is not a marker, so the solution would be shown. "
            "Write '### BEGIN SOLUTION' or '### END SOLUTION'."
        )
    return ""


def _placeholders(block: Sequence[str], end_line: int) -> str:
    first = next((line for line in block if line.strip()), "")
    indent = first[: len(first) - len(first.lstrip())]
    # An `if` above it makes an indented block a module; dedenting would cut into long strings.
    text = ("if True:\n" if indent else "") + "".join(block)
    try:
        names = _assigned(ast.parse(text))
    except SyntaxError as error:
        raise SftkitError(
            f"The solution that ends on line {end_line} is not plain Python: {error.msg}. "
            "Keep magics and shell commands outside the markers."
        ) from error
    kept = [name for name in dict.fromkeys(names) if not name.startswith("_")]
    return "".join(f"{indent}{name} = ...\n" for name in kept) or f"{indent}...\n"


def _assigned(node: ast.AST) -> list[str]:
    """List the names a block assigns, in order, leaving out what its functions keep inside."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        return []
    names: list[str] = []
    if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.NamedExpr):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names += [name for target in targets for name in _target_names(target)]
    return names + [name for child in ast.iter_child_nodes(node) for name in _assigned(child)]


def _target_names(target: ast.expr) -> list[str]:
    """List plain names of a target; `table[key]` and `record.field` hold no name to keep."""
    if isinstance(target, ast.Name):
        return [target.id]
    if isinstance(target, ast.Starred):
        return _target_names(target.value)
    if isinstance(target, ast.Tuple | ast.List):
        return [name for part in target.elts for name in _target_names(part)]
    return []
