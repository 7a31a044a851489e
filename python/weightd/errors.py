"""What goes wrong. Every exception is a `WeightdError`, and also the built-in one that a caller might expect."""


class WeightdError(Exception):
    """Everything that weightd raises by itself."""


class NotFound(WeightdError, FileNotFoundError):
    """No such file, or a directory without weights."""


class Unreadable(WeightdError, OSError):
    """A file that the system does not give."""


class InvalidFile(WeightdError, ValueError):
    """A file that is not what it claims to be, or files that do not fit together."""


class TensorNotFound(WeightdError, KeyError):
    """No tensor of that name."""

    # A KeyError shows its argument in quotes, which is meant for keys, not for sentences.
    __str__ = Exception.__str__


class InvalidIndex(WeightdError, IndexError):
    """A part that a tensor does not have."""


class Closed(WeightdError, ValueError):
    """It was closed."""


class CannotShare(WeightdError, BufferError):
    """A tensor's memory cannot be lent as it was asked for."""


class InvalidArgument(WeightdError, ValueError):
    """What was asked for makes no sense: a slice that a tensor does not have, or a size that is none."""


class NoMemory(WeightdError, MemoryError):
    """No memory for a copy, or for what the agent would lend."""


class RingFull(NoMemory):
    """A tensor does not fit into the ring, because everything in it is in use."""


class NoAgent(WeightdError, ConnectionError):
    """No agent answers, or it went away and no other came."""


class NotPermitted(WeightdError, PermissionError):
    """The agent may not give that to this process, or the origin not to the agent."""


class AgentFailed(WeightdError, OSError):
    """The agent cannot do what it was asked, for whatever reason has no exception of its own."""


class DeviceFailed(WeightdError, RuntimeError):
    """The driver of a device refused to copy a tensor there, or could not."""


class Unsupported(WeightdError, TypeError):
    """A framework, a device or a type that cannot be served."""
