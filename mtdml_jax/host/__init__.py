"""Errors, paths, files, processes, and what depends on the operating system."""
