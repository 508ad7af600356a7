# Imported by other processes, with what only those have.
collect_ignore = ["guided.py", "hooks.py", "__main__.py"]
