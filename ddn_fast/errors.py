"""Every error a user can cause has a name here; each message says what was wanted and what came."""


class DDNError(Exception):
    """Base of all errors that ddn_fast raises on purpose."""


class ConfigError(DDNError, ValueError):
    """A network configuration or a training recipe that describes nothing buildable."""


class InputError(DDNError, ValueError):
    """A tensor or argument of another shape, dtype, device or range than the function takes."""


class ImageError(DDNError, ValueError):
    """An image file or array that cannot be read or used as an image."""


class DataError(DDNError, ValueError):
    """A dataset folder, split, tag file or mask that is missing, empty or inconsistent."""


class WeightsError(DDNError, ValueError):
    """A weights file that is missing, damaged, or belongs to another network."""


class CheckpointError(DDNError, ValueError):
    """A training checkpoint that is damaged or belongs to another recipe."""


class DivergedError(DDNError, RuntimeError):
    """Training whose loss or weights are no longer numbers; the last checkpoint is intact."""


class NumericsError(DDNError, ArithmeticError):
    """Scores that are not numbers: damaged weights, or a dtype too narrow for them."""


class DistributedError(DDNError, RuntimeError):
    """Processes of one training run that do not fit together, or one of which has ended."""
