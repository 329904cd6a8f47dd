"""The project's source files, parsed: what the tests of its architecture ask about."""

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("xmsd_jax", "torch_bridge")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import:
    """One imported module, absolute, and whether it is imported when the file is."""

    module: str
    line: int
    at_import_time: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
    """A parsed source file."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def imports(self) -> list[Import]:
        return list(imports(self.tree, self.name, is_package=self.path.name == "__init__.py"))

    @property
    def lines(self) -> int:
        return self.text.count("\n")


def modules() -> list[Module]:
    """Every module of both packages."""
    return [parse(path) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def parse(path: Path) -> Module:
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    text = path.read_text(encoding="utf-8")
    return Module(name=name, path=path, text=text, tree=ast.parse(text, str(path)))


def imports(tree: ast.Module, module: str, is_package: bool = False) -> Iterator[Import]:
    """All imports of a module; those inside functions, and those for type checkers only, come later than import time.

    `from a import b` gives `a.b`, which may be a module or a name in one; rules compare prefixes, so both are right.
    """
    lazy = {id(node) for parent in ast.walk(tree) if is_lazy(parent) for node in ast.walk(parent)}
    for node in ast.walk(tree):
        now = id(node) not in lazy
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module=alias.name, line=node.lineno, at_import_time=now)
        elif isinstance(node, ast.ImportFrom):
            start = _absolute(node, module, is_package)
            for alias in node.names:
                yield Import(module=f"{start}.{alias.name}", line=node.lineno, at_import_time=now)


def is_lazy(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    kept = parts[: len(parts) - node.level + is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])
