"""What is better than ordinary training, tuned as well, at the same cost?"""

from cpfast.studies.frontier.study import Frontier

__all__ = ["Frontier"]
