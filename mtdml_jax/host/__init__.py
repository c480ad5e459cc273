"""The machine below: errors, paths, processes, files."""
