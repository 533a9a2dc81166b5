"""What a model is trained for."""

from hvdlm.tasks.interface import Batch, Sums, Task, TaskConfig, TaskContext
from hvdlm.tasks.kinds import TASKS, AnyTaskConfig

__all__ = ["TASKS", "AnyTaskConfig", "Batch", "Sums", "Task", "TaskConfig", "TaskContext"]
