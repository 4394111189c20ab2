"""The paper's claims, one file each: ``python -m experiments.NAME --scale laptop`` trains, draws and writes
docs/experiments/NAME.md.
"""
