"""Every operation on a file fails, or is the last one that a process does: what is left is whole, or what was there.

    PYTHONPATH=.:tests python -m faults            # every job, every fault, at every operation: long
    PYTHONPATH=.:tests python -m faults pack-file --fault kill --every 5

`layer` counts a process's operations on files and lets the n-th one fail; `jobs` is what is done to it; `points` runs a
job at a point and says what must hold afterwards.
"""
