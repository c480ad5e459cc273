"""Run configurations: default.py lists every key, the others override."""
