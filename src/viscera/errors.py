"""Every error viscera raises for a reason a user can mend.

    VisceraError
    ├── InputError               what the user gave is wrong
    │   ├── ImageError           a scan that cannot be read, or is not one CT volume
    │   ├── ClassNameError       a class name nobody knows, or that means several things
    │   └── SettingError         an option or a setting outside its range, or two that conflict
    ├── OutputError              a result cannot be written where it was asked for
    ├── CheckpointError          weights that do not fit, or cannot be trusted
    ├── TextBankError            label vectors that do not fit the model they are meant for
    ├── TrainingError            a training run that cannot go on
    ├── KnowledgeError           one of our own tables breaks its rule
    └── MissingDependencyError   an optional package is not installed

Each message names the offending value, the rule and the way out. The command line prints the
message alone and exits with 2; a library user catches `VisceraError`.
"""


class VisceraError(Exception):
    """Base of all errors below; catching it catches nothing that is a bug of ours."""


class InputError(VisceraError):
    """What the user gave is wrong."""


class ImageError(InputError):
    """A scan that cannot be read, or that is not one CT volume."""


class ClassNameError(InputError):
    """A class name that no table knows, or that could mean several classes."""


class SettingError(InputError):
    """An option or setting outside its range, or two that exclude each other."""


class OutputError(VisceraError):
    """A result cannot be written where it was asked for."""


class CheckpointError(VisceraError):
    """Weights that do not fit the model, are damaged, or hold objects that may not be loaded."""


class TextBankError(VisceraError):
    """A bank of label vectors that does not fit the model it is meant for."""


class TrainingError(VisceraError):
    """A training run that cannot go on: its loss is no longer a number."""


class KnowledgeError(VisceraError):
    """A table under `viscera/knowledge` breaks the rule its reader states."""


class MissingDependencyError(VisceraError):
    """An optional package is not installed; the message holds the exact pip command."""
