"""Every error a person can cause, as one tree.

    LcRayError(ValueError)
     ├─ SpecError        the job file: unknown field, wrong value, contradiction
     ├─ DataError        the data: missing file or column, nothing left, too many rejects, unknown label
     ├─ ModelError       the model: base not found, no such layer, shapes that do not fit
     ├─ ArtifactError    an artifact: missing, incomplete, altered, or no room to write one
     ├─ PlacementError   the cluster can't hold what the job asks for
     ├─ TrainError       a segment failed for good
     ├─ AcceptError      the finished model did not pass the job's `accept` gate
     ├─ ServeError       an endpoint can't start or answered with an error
     ├─ DeployError      a platform is unknown or refused
     └─ ClusterError     a cluster can't be reached, refuses, or lacks what a job needs

Each says what was wrong, where (file, row, field), and what to do about it, and survives pickling between Ray processes.
"""

from __future__ import annotations


class LcRayError(ValueError):
    """Base of all errors meant for a person.

    Args:
        what: what was wrong, a sentence.
        where: file, row, column or field it was found at.
        fix: what to do about it.
    """

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.what}" + (f"\n  → {self.fix}" if self.fix else "")


class SpecError(LcRayError):
    """The job file is wrong."""


class DataError(LcRayError):
    """The data is wrong or missing."""


class ModelError(LcRayError):
    """The model can't be found, loaded or changed as asked."""


class ArtifactError(LcRayError):
    """An artifact is missing, incomplete or altered, or can't be written."""


class PlacementError(LcRayError):
    """The cluster can't place the job."""


class TrainError(LcRayError):
    """A training segment failed for good."""


class AcceptError(LcRayError):
    """The model did not pass the job's accept gate."""


class ServeError(LcRayError):
    """An endpoint can't start, or answered with an error."""


class DeployError(LcRayError):
    """A platform is unknown, or refused a deployment."""


class ClusterError(LcRayError):
    """A cluster can't be reached, refuses a job, or lacks what it needs."""


def first_line(error: BaseException) -> str:
    """Of what an error says, or the one that Ray has wrapped with its traceback; its name, if it says nothing."""
    if isinstance(wrapped := getattr(error, "cause", None), BaseException):
        return first_line(wrapped)
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def unwrap(error: BaseException) -> BaseException:
    """The error of ours inside the ones that Ray wraps around it, or the error itself."""
    return _ours(error) or error


def _ours(error: BaseException) -> LcRayError | None:
    # Ray's wrapper of a task's error is a subclass of that error's class, and prints its traceback. Ray Train's holds one error for each worker.
    wrapped = getattr(error, "cause", None) or getattr(error, "_base_exc", None)
    if isinstance(error, LcRayError) and not isinstance(wrapped, BaseException):
        return error
    inner = [wrapped or error.__cause__, getattr(error, "controller_failure", None), *getattr(error, "worker_failures", {}).values()]
    return next((ours for one in inner if isinstance(one, BaseException) and (ours := _ours(one))), None)
