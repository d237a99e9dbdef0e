"""Does the rule see learning?"""

from cpfast.studies.falsify.study import Falsification, Setting

__all__ = ["Falsification", "Setting"]
