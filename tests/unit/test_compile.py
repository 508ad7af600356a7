"""What is compiled when an environment is built is all that Python code will call."""

from __future__ import annotations

import subprocess
import sys

FOUND = """
import importlib, pkgutil
import learner
from numba.core.dispatcher import Dispatcher
from learner.compile import compile_all

for one in pkgutil.walk_packages(learner.__path__, "learner."):
    importlib.import_module(one.name)
compile_all()
mine = {
    f"{name}.{value.__name__}": value
    for name, module in sorted(__import__("sys").modules.items()) if name.startswith("learner.")
    for value in vars(module).values()
    if isinstance(value, Dispatcher) and value.__module__ == name and not value.targetoptions.get("no_cpython_wrapper")
}
# Of what others call, too: an index of another stamp, or of a function that nobody called, is empty.
print(len(mine), [name for name, value in mine.items() if not value._cache._cache_file._load_index()])
"""


def test_each_function_that_python_code_calls_is_compiled_when_an_environment_is_built() -> None:
    done = subprocess.run([sys.executable, "-c", FOUND], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    number, _, without = done.stdout.partition(" ")
    assert int(number) > 10
    assert without.strip() == "[]"
