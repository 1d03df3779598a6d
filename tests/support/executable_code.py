"""What in a Python source could run bytes that came from elsewhere; by its syntax tree.

For the test that none of our packages has any of it. A name is followed through `import ... as`
and `from ... import`; what is reached in other ways (a module taken out of a dictionary) is not
seen, which is why a run is watched too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

# Modules whose formats can name code, or that run text.
FORBIDDEN_MODULES = frozenset(
    {"pickle", "_pickle", "cPickle", "pickletools", "marshal", "shelve", "dill", "cloudpickle",
     "joblib", "jsonpickle", "yaml", "ruamel", "code", "codeop", "runpy", "xmlrpc",
     "torch.package", "torch.hub", "torch.jit", "numpy.lib.format", "zipimport"}
)  # fmt: skip
FORBIDDEN_CALLS = frozenset(
    {"eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec",
     "builtins.compile", "os.system", "os.popen", "torch.hub.load", "torch.jit.load",
     "multiprocessing.connection.Client", "multiprocessing.connection.Listener",
     "subprocess.getoutput", "subprocess.getstatusoutput"}
)  # fmt: skip
OWN_PROCESSES = frozenset({"multiprocessing", "concurrent.futures.ProcessPoolExecutor"})


def violations(source: str) -> list[str]:
    """What is wrong in a module's source, each with its line."""
    tree = ast.parse(source)
    names = dict(_imported(tree))
    found = [(node.lineno, what) for node in ast.walk(tree) for what in _wrong(node, names)]
    return [f"line {line}: {what}" for line, what in sorted(found)]


def starts_processes(source: str) -> bool:
    """Whether a module has Python talk to processes of its own, which it does in pickles."""
    tree = ast.parse(source)
    imported = {module for _, module in _imported(tree)}
    return any(
        module == own or module.startswith(f"{own}.")
        for module in imported
        for own in OWN_PROCESSES
    )


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Local names and what they stand for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (top, top)
                yield alias.name, alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _wrong(node: ast.AST, names: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    else:
        modules = []
    for module in modules:
        if any(module == bad or module.startswith(f"{bad}.") for bad in FORBIDDEN_MODULES):
            yield f"imports {module}"
    if isinstance(node, ast.Call):
        yield from _wrong_call(node, names)


def _wrong_call(call: ast.Call, names: dict[str, str]) -> Iterator[str]:
    name = _name(call.func, names)
    given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    if name in FORBIDDEN_CALLS or any(name.startswith(f"{bad}.") for bad in FORBIDDEN_MODULES):
        yield f"calls {name}"
    if name == "importlib.import_module" and call.args:
        module = getattr(call.args[0], "value", "")  # a constant's
        if module in FORBIDDEN_MODULES:
            yield f"calls import_module for {module}"
    if name == "torch.load" and not _is(given.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    if name in ("numpy.load", "numpy.save", "numpy.savez", "numpy.savez_compressed") and not _is(
        given.get("allow_pickle"), False
    ):
        yield f"{name} without allow_pickle=False"
    if name.endswith(".from_pretrained") and not _is(given.get("trust_remote_code"), False):
        yield "from_pretrained without trust_remote_code=False"
    if name.endswith(".extractall") and not _is(given.get("filter"), "data"):
        yield 'extractall without filter="data"'
    for keyword, allowed in (
        ("shell", False),
        ("trust_remote_code", False),
        ("allow_pickle", False),
        ("weights_only", True),
        ("use_safetensors", True),
    ):
        if keyword in given and not _is(given[keyword], allowed):
            yield f"{keyword} is not {allowed}"


def _name(node: ast.expr, names: dict[str, str]) -> str:
    """A dotted name with its imports followed; what is called on a value begins with a dot."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value, names)}.{node.attr}"
    return ""


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and (node.value, type(node.value)) == (value, type(value))
