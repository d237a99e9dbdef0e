"""Does detection detect?"""

from cpfast.studies.criteria.study import Criteria

__all__ = ["Criteria"]
