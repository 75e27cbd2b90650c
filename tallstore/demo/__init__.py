"""A zoo made on the spot, to try tallstore on: nothing is downloaded. Needs `tallstore[demo]`."""

from tallstore.demo.digits import TASKS, Task
from tallstore.demo.run import DemoResult, DemoTask, run_demo
from tallstore.demo.zoo import DemoZoo, Plan, evaluate, make_zoo

__all__ = ["TASKS", "DemoResult", "DemoTask", "DemoZoo", "Plan", "Task", "evaluate", "make_zoo", "run_demo"]
