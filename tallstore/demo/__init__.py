"""A zoo made on the spot, to try tallstore on: nothing is downloaded. Needs `tallstore[demo]`."""

from tallstore.demo.digits import TASKS, Task
from tallstore.demo.zoo import DemoZoo, Plan, Progress, evaluate, make_zoo

__all__ = [
    "TASKS",
    "DemoZoo",
    "Plan",
    "Progress",
    "Task",
    "evaluate",
    "make_zoo",
]
