"""The shape of the code: who imports whom, what each process loads, and how large things get."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("app", "worker", "bench", "docs", "examples", "tests")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MAX_FUNCTION_LINES = 40
MAX_MODULE_LINES = 400

TORCH_STACK = {"torch", "transformers", "peft", "bitsandbytes", "safetensors", "gguf", "numpy"}
SERVICE_STACK = {"celery", "kombu", "redis", "sqlalchemy", "psycopg", "alembic"}
WEB_STACK = {"fastapi", "starlette", "uvicorn"}
# What starts a process -> what must not be loaded then: packages, and modules of ours.
PROCESSES = {
    "import app.main": TORCH_STACK | {"worker"},
    "import worker.tasks": TORCH_STACK | WEB_STACK | {"worker.training", "worker.trainer"},
    "import worker.trainer": WEB_STACK | SERVICE_STACK | {"pydantic_settings", "app.settings"},
    "import sys; sys.argv[1:] = ['--help']; from app.cli.main import main; main()": TORCH_STACK
    | WEB_STACK
    | {"worker"},
}
_LIST_MODULES = """
import sys
try:
    {start}
except SystemExit as end:
    assert not end.code, end.code
print("loaded", *sys.modules)
"""


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions() -> Iterator[tuple[str, str, int]]:
    """Yield name, text of the line with the name, and number of lines, of every function.

    The lines are those of the body, from its first statement to its last, without the docstring.
    """
    for path in MODULES:
        text = path.read_text("utf-8")
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node, clean=False) else node.body
                num_lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                yield f"{relative(path)}:{node.name}", lines[node.lineno - 1], num_lines


def loaded_by(start: str) -> set[str]:
    """Return the modules that a fresh process has after a statement."""
    done = subprocess.run(
        [sys.executable, "-c", _LIST_MODULES.format(start=start)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def tree_in(readme: str) -> list[str]:
    """Return the lines of the fenced block that draws the repository's tree, if there is one."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme, flags=re.DOTALL | re.MULTILINE)
    trees = [block for block in blocks if re.search(r"^\W*worker/", block, flags=re.MULTILINE)]
    return trees[0].splitlines() if trees else []


def test_the_import_contracts_hold():
    lint_imports = Path(sys.executable).with_name("lint-imports")

    done = subprocess.run([lint_imports], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("start", "forbidden"), PROCESSES.items(), ids=list(PROCESSES))
def test_a_process_loads_nothing_that_is_not_its_own(start: str, forbidden: set[str]):
    loaded = loaded_by(start)

    found = {name for name in loaded if any(f"{name}.".startswith(f"{no}.") for no in forbidden)}
    assert not found, sorted(found)[:10]


def test_a_function_fits_in_forty_lines_or_says_why_not():
    too_long = [
        f"{name} has {num_lines} lines"
        for name, definition, num_lines in functions()
        if num_lines > MAX_FUNCTION_LINES and not re.search(r"# long: \w+", definition)
    ]

    assert not too_long, too_long


def test_a_module_is_split_before_it_gets_long():
    sizes = {relative(path): len(path.read_text("utf-8").splitlines()) for path in MODULES}

    assert not {name: size for name, size in sizes.items() if size > MAX_MODULE_LINES}


def test_every_package_marker_is_empty():
    markers = [path for path in MODULES if path.name == "__init__.py"]

    assert not [relative(path) for path in markers if path.stat().st_size > 0]


def test_every_package_of_the_product_has_a_marker():
    packages = {path.parent for path in MODULES if relative(path).startswith(("app/", "worker/"))}

    assert not [relative(package) for package in packages if not _has_marker(package)]


def test_every_module_says_first_what_lives_in_it():
    undocumented = [
        relative(path)
        for path in MODULES
        if path.name != "__init__.py" and not ast.get_docstring(ast.parse(path.read_bytes()))
    ]

    assert not undocumented


def test_the_readmes_tree_says_of_every_module_what_the_module_says():
    tree = tree_in((ROOT / "README.md").read_text("utf-8"))
    written = Counter(tuple(line.split(maxsplit=1)) for line in tree if ".py " in line)

    product = [path for path in MODULES if relative(path).startswith(("app/", "worker/"))]
    said = Counter((path.name, first_line(path)) for path in product if path.name != "__init__.py")
    assert not said - written


def first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_bytes())) or ""
    return docstring.partition("\n")[0].removesuffix(".")


def _has_marker(package: Path) -> bool:
    return (package / "__init__.py").exists()
