"""When does it matter what a network sees?"""

from cpfast.studies.deficit.study import Deficit

__all__ = ["Deficit"]
