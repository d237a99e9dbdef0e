"""When does it matter that a network is regularised?"""

from cpfast.studies.window.study import RegularisationWindow

__all__ = ["RegularisationWindow"]
