"""The task engine: EC2's CreateStoreImageTask, DescribeStoreImageTasks and CreateRestoreImageTask.

`engine.py` is what users call; `runner.py` has the threads that work, `run.py` what a task
does, `journal.py` what is durable. docs/tasks.md explains states and crashes. May import all
layers below.
"""

from amistore.tasks.engine import TaskEngine
from amistore.tasks.plans import Prices, RequestRates, RestorePlan, StorePlan, TaskPlan
from amistore.tasks.run import SweepReport
from amistore.tasks.task import (
    RestoreImageTask,
    SnapshotProgress,
    StoreImageTask,
    TagSpecification,
    Task,
    TaskPage,
)

__all__ = [
    "Prices",
    "RequestRates",
    "RestoreImageTask",
    "RestorePlan",
    "SnapshotProgress",
    "StoreImageTask",
    "StorePlan",
    "SweepReport",
    "TagSpecification",
    "Task",
    "TaskEngine",
    "TaskPage",
    "TaskPlan",
]
