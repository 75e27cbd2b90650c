"""Every error that tallstore raises on purpose.

    TallstoreError
    ├── InputError                 what was given to pack cannot be used
    │   ├── CheckpointError        a checkpoint is missing, unreadable or of no known kind
    │   ├── WrongBaseError         base and task do not belong together (names the tensor)
    │   ├── TaskNameError          a task name that cannot be a folder on every system and on the Hub
    │   ├── OptionError            an option, or a combination of options, that makes no sense
    │   └── EvaluatorError         the user's evaluator failed or returned no number
    ├── BudgetError                a promise about error or retention cannot be kept
    ├── OutputError                the output cannot be written
    │   └── OutputExistsError      it is there already and overwriting was not asked for
    ├── ArchiveError               what was opened is not a whole, valid archive
    │   ├── NotAnArchiveError      no manifest there
    │   ├── FormatError            bytes that the format does not allow
    │   ├── DamagedError           bytes that differ from their checksum, or are missing
    │   ├── VersionError           written by a newer major version
    │   └── CodecError             a codec id outside the closed table
    ├── NoSuchTaskError            the archive has no such task (lists those it has)
    ├── NoSuchTensorError          the task, vector or base has no such tensor
    ├── BaseNeededError            the base is referenced, and was not given or found
    ├── ModelMismatchError         a model's parameters are not those of the task
    │   └── ModelChangedError      a model that a switcher serves was changed by someone else
    ├── RemoteError                another machine did not give, or take, what was asked of it
    │   ├── NoSuchRepoError        the Hub has no such repository, or shows it to others only
    │   ├── NoSuchRevisionError    the repository has no such branch, tag or commit
    │   ├── AccessError            it may not be read or written with this token, or without one
    │   ├── UnreachableError       no answer; or offline, and not in the local cache
    │   └── ConflictError          the repository changed while it was being pushed to
    ├── WorkerError                a worker of pack's engine died again and again, or cannot see what it needs
    ├── EngineError                a serving engine cannot do what was asked; it goes on with what it had
    ├── DeviceError                the asked device is not there or has no memory left
    └── MissingExtraError          an optional package is needed (names the install command)

A caller who wants one line for a person prints the exception: the message names the file, the tensor
and what to do next.
"""

from __future__ import annotations

__all__ = [
    "AccessError",
    "ArchiveError",
    "BaseNeededError",
    "BudgetError",
    "CheckpointError",
    "CodecError",
    "ConflictError",
    "DamagedError",
    "DeviceError",
    "EngineError",
    "EvaluatorError",
    "FormatError",
    "InputError",
    "MissingExtraError",
    "ModelChangedError",
    "ModelMismatchError",
    "NoSuchRepoError",
    "NoSuchRevisionError",
    "NoSuchTaskError",
    "NoSuchTensorError",
    "NotAnArchiveError",
    "OptionError",
    "OutputError",
    "OutputExistsError",
    "RemoteError",
    "TallstoreError",
    "TaskNameError",
    "UnreachableError",
    "VersionError",
    "WorkerError",
    "WrongBaseError",
]


class TallstoreError(Exception):
    """Root of every error that tallstore raises on purpose."""


class InputError(TallstoreError):
    """What was given to `pack` cannot be used."""


class CheckpointError(InputError):
    """A checkpoint is missing, unreadable or of no known kind."""


class WrongBaseError(InputError):
    """Base and task do not belong together. Names the first tensor that shows it."""


class TaskNameError(InputError):
    """A task name that cannot be a folder name on every system and on the Hub."""


class OptionError(InputError):
    """An option, or a combination of options, that makes no sense."""


class EvaluatorError(InputError):
    """The user's evaluator could not be found, raised, or returned no finite number."""


class BudgetError(TallstoreError):
    """A promise about error or retention cannot be kept. Names the task and says why."""


class OutputError(TallstoreError):
    """The output cannot be written."""


class OutputExistsError(OutputError):
    """The output is there already, and overwriting it was not asked for."""


class ArchiveError(TallstoreError):
    """What was opened is not a whole, valid archive."""


class NotAnArchiveError(ArchiveError):
    """There is no manifest: not an archive, or one whose writing never ended."""


class FormatError(ArchiveError):
    """Bytes that the format does not allow, whoever wrote them."""


class DamagedError(ArchiveError):
    """Bytes that differ from their checksum, or are missing."""


class VersionError(ArchiveError):
    """The archive was written for a newer major version of the format."""


class CodecError(ArchiveError):
    """A codec id that is not in the closed table of this version."""


class NoSuchTaskError(TallstoreError):
    """The archive has no such task."""


class NoSuchTensorError(TallstoreError):
    """The task, the vector or the base has no such tensor."""


class BaseNeededError(TallstoreError):
    """The archive references its base, and the base was not given or found."""


class ModelMismatchError(TallstoreError):
    """A model's parameters are not those of the task. Nothing was written to it."""


class ModelChangedError(ModelMismatchError):
    """A model that a switcher serves was changed by someone else. Nothing was written to it."""


class RemoteError(TallstoreError):
    """Another machine did not give, or take, what was asked of it."""


class NoSuchRepoError(RemoteError):
    """The Hub has no such repository, or shows it to others only."""


class NoSuchRevisionError(RemoteError):
    """The repository has no such branch, tag or commit."""


class AccessError(RemoteError):
    """It may not be read or written with this token, or without one."""


class UnreachableError(RemoteError):
    """No answer; or the network is not to be used, and what is needed is not in the local cache."""


class ConflictError(RemoteError):
    """The repository changed while it was being pushed to. Nothing was changed by this push."""


class WorkerError(TallstoreError):
    """A worker of the engine that packs died again and again, or cannot see the input or the working folder."""


class EngineError(TallstoreError):
    """A serving engine cannot do what was asked. Unless the message says otherwise it goes on with what it had."""


class DeviceError(TallstoreError):
    """The asked device is not there, or has no memory left."""


class MissingExtraError(TallstoreError):
    """An optional package is needed. The message holds the command that installs it."""
