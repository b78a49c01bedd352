"""The exception tree of the project: everything a user can cause derives from `PipelineError`."""


class PipelineError(Exception):
    """Base of all errors with a message meant for the user; the command line prints it and exits 1."""


class InvalidConfig(PipelineError):
    """A preset, option or value that cannot be used."""


class InvalidDataset(PipelineError):
    """A data set that cannot be read as COCO format."""


class InvalidModel(PipelineError):
    """A model folder or checkpoint that is missing or of another architecture."""


class LayoutOverflow(PipelineError):
    """A layout whose prompt does not fit the tokenizer's context length."""


class ArtifactMissing(PipelineError):
    """A step was asked to run before the steps it depends on."""


class InvalidManifest(PipelineError):
    """An artifact whose manifest is missing or cannot be read."""


class InvalidRecord(PipelineError):
    """A record of a run that is damaged, or of a newer version."""


class InvalidGraph(PipelineError):
    """Steps that do not make a graph: a cycle, an unknown kind or input, two steps of one key."""


class StorageError(PipelineError):
    """The artifact root cannot be read or written to."""


class TrainingDiverged(PipelineError):
    """A loss became NaN or infinite."""


class OutOfMemory(PipelineError):
    """The memory of a device does not suffice for a step."""


class StepFailed(PipelineError):
    """A step's process ended with an error."""


class ServiceUnavailable(PipelineError):
    """A server, worker or port that a command needs is not available."""


class RemoteConflict(PipelineError):
    """The mirror has an artifact of the same key with other content."""


class RemoteDamaged(PipelineError):
    """An artifact on the mirror whose files are missing or not what they were."""
