"""A detector's folder, of whichever kind it is."""

from collections.abc import Mapping
from pathlib import Path

from models.detector.darknet import DarknetDetector
from models.detector.detector import Detector
from models.detector.given_options import DARKNET_FILES, detector_files


def load_detector(
    folder: Path, things: Mapping[int, str] | None = None
) -> Detector | DarknetDetector:
    """Load a folder that `Detector` or `DarknetDetector` wrote.

    Args:
        things: category id to name of another data set than the detector's, whose ids it is to
            report; a class not among them is reported as `UNKNOWN_CLASS`.

    Raises:
        InvalidModel: a file is missing or does not fit the others.
    """
    kind = DarknetDetector if detector_files(folder) == DARKNET_FILES else Detector
    return kind.load(folder, things)
