"""What may be different about the data until a network's accuracy is half way?"""

from cpfast.studies.enlightenment.study import Enlightenment

__all__ = ["Enlightenment"]
