"""A zoo made on the spot, to try tallstore on: nothing is downloaded. Needs `tallstore[demo]`."""

from tallstore.demo.digits import TASKS, DigitsTask
from tallstore.demo.run import DemoResult, DemoTask, run_demo
from tallstore.demo.zoo import DemoPlan, DemoZoo, evaluate, make_zoo

__all__ = ["TASKS", "DemoPlan", "DemoResult", "DemoTask", "DemoZoo", "DigitsTask", "evaluate", "make_zoo", "run_demo"]
