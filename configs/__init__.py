"""Configs of runs: default.py lists every setting; the others override some."""
