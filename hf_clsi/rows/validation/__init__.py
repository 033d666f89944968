"""Turns the files, rows and clips of a dataset folder into findings; `rows/validate.py` runs the checks."""
