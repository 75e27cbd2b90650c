"""Every cap of the format, in one place. The specification's page `limits.md` states the same numbers.

A reader checks against these before it allocates, so that a hostile archive costs it little.
"""

from __future__ import annotations

MANIFEST_BYTES = 16 * 1024 * 1024
"""Largest `tall.json`."""
HEADER_BYTES = 25_000_000
"""Largest safetensors header of a part."""
FILE_BYTES = 256 * 1024 * 1024
"""Largest file under `common/` or `tasks/<task>/files/`."""
JSON_DEPTH = 32
"""Deepest nesting of arrays and objects in any JSON text."""
INTEGER = 2**53 - 1
"""Largest integer in any JSON text: what every JSON implementation holds exactly."""
TASKS = 10_000
"""Most tasks in an archive."""
TENSORS = 100_000
"""Most tensors in a part."""
PARTS = 200_000
"""Most files in an archive."""
WEIGHTS_FILES = 1000
"""Most weights files of a task, shards of one counted once."""
RELATIVES = 64
"""Most tasks that one is made of."""
CHAIN = 8
"""Longest chain of tasks each of which is made of the next."""
CHAIN_WORK = 1024
"""Most tasks that one is made of in all: those that it names, and theirs again for each of them, itself counted."""
RANK = 16
"""Most dimensions of a tensor."""
ELEMENTS = 2**48
"""Most elements of a tensor."""
CHUNK_MIN, CHUNK_MAX = 2**10, 2**24
"""Fewest and most elements of a chunk (a power of two)."""
NAME_BYTES = 1024
"""Longest tensor name, in UTF-8."""
PATH_BYTES = 1024
"""Longest path inside an archive, in UTF-8."""
SEGMENT_BYTES = 255
"""Longest folder or file name inside an archive, in UTF-8."""
TASK_NAME_LENGTH = 96
"""Longest task name."""
ALIGNMENT = 64
"""Where the data of a part begins, counted from the part's first byte; and entries of a `.tall` file."""
BLOB_ALIGNMENT = 8
"""What the coded bytes of a tensor are padded to, with zeros."""
