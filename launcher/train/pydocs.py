"""The running Python -> its documentation: docstrings of the standard library, of its C modules, and the language topics.

The embedded corpus needs no network and copies nothing into the repository. What it holds depends on the Python version;
distributions that leave out `pydoc_data` lose the topics and nothing else. No rows are made here (see pydocs_rows.py).
"""

from __future__ import annotations

import ast
import contextlib
import gc
import hashlib
import importlib
import inspect
import io
import pkgutil
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SKIPPED_FOLDERS = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "turtledemo",
    "ensurepip",
}
# Modules that act when they are imported: a browser window, a poem on stdout.
SKIPPED_MODULES = {"antigravity", "this"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Doc:
    """One documented thing."""

    name: str  # qualified: `json.decoder.JSONDecoder.decode`
    signature: str
    text: str
    kind: Literal["module", "class", "function", "topic"]


def all_docs() -> list[Doc]:
    """Every documented thing, in an order that is the same for the same Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old source files with invalid escapes
        with _no_collector():
            docs = list(_source_docs())
        docs += _extension_docs({doc.name for doc in docs})
    return docs + _topics()


def corpus_fingerprint() -> str:
    """Names the corpus without reading it all: Python's version, its source files by content, its C modules by name."""
    digest = hashlib.sha256(f"{sys.implementation.name} {sys.version}\n".encode())
    folder = _stdlib()
    for path in _source_files(folder):
        digest.update(f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    digest.update("\n".join([*_extension_modules(), *(doc.name for doc in _topics())]).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Syntax trees are many objects without cycles: looking for cycles in them doubles the time of the walk."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _stdlib() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _source_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if path.name not in SKIPPED_FOLDERS and not path.name.startswith("config-"):
                yield from _source_files(path)
        elif path.suffix == ".py":
            yield path


def _source_docs() -> Iterator[Doc]:
    """Parsed, not imported: no module of the standard library is run for its docstrings."""
    folder = _stdlib()
    for path in _source_files(folder):
        module = ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, ValueError):  # UnicodeDecodeError is a ValueError
            continue
        if text := ast.get_docstring(tree):
            yield Doc(name=module, signature=module, text=text, kind="module")
        yield from _docs_below(tree, module)


def _docs_below(node: ast.AST, prefix: str) -> Iterator[Doc]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        name = f"{prefix}.{child.name}"
        if text := ast.get_docstring(child):
            if isinstance(child, ast.ClassDef):
                yield Doc(name=name, signature=child.name, text=text, kind="class")
            else:
                yield Doc(name=name, signature=f"{child.name}({ast.unparse(child.args)})", text=text, kind="function")
        yield from _docs_below(child, name)


def _extension_modules() -> list[str]:
    files = {module.name for module in pkgutil.iter_modules([str(_stdlib() / "lib-dynload")])}
    return sorted(name for name in files | set(sys.builtin_module_names) if "test" not in name and name not in SKIPPED_MODULES)


def _extension_docs(seen: set[str]) -> Iterator[Doc]:
    """C modules have no source to parse: they are imported and asked. One that needs an absent library is left out."""
    for module_name in _extension_modules():
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                module = importlib.import_module(module_name)
            except (ImportError, OSError, RuntimeError):
                continue
        public = "" if module_name == "builtins" else module_name.lstrip("_") + "."
        for name, value in _members(module, public):
            text = getattr(value, "__doc__", None)
            # A Python function in a C module was put there by somebody else, for example sys.excepthook by a debugger.
            foreign = isinstance(value, types.FunctionType)
            if foreign or not callable(value) or not isinstance(text, str) or not text.strip() or name in seen:
                continue
            seen.add(name)
            kind: Literal["class", "function"] = "class" if isinstance(value, type) else "function"
            yield Doc(name=name, signature=name.split(".")[-1], text=inspect.cleandoc(text), kind=kind)


def _members(module: types.ModuleType, public: str) -> Iterator[tuple[str, object]]:
    for name, value in sorted(vars(module).items()):
        yield public + name, value
        if isinstance(value, type):
            for inner, member in sorted(vars(value).items()):
                if not inner.startswith("__"):
                    yield f"{public}{name}.{inner}", member


def _topics() -> list[Doc]:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # Debian puts it in another package
        return []
    return [Doc(name=name, signature=name, text=text, kind="topic") for name, text in sorted(topics.items())]
