"""A script, or a module by its name, in a process that was forked for it, with its output in two files.

conftest.py runs this file with the names that it does not define.
"""

import os
import runpy
import sys

script: str
arguments: list[str]
environment: dict[str, str]
out: str
error: str

for number, path in ((1, out), (2, error)):
    with open(path, "w") as file:
        os.dup2(file.fileno(), number)
os.environ.update(environment)
sys.argv = [script, *arguments]
sys.path.insert(0, os.path.dirname(script))
run = runpy.run_path if script.endswith(".py") else runpy.run_module
run(script, run_name="__main__")
