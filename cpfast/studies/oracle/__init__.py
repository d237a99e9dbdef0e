"""Where should the repeats have ended?"""

from cpfast.studies.oracle.study import Oracle

__all__ = ["Oracle"]
