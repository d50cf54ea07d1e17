"""The certificate: what is measured of the final adapter before the job may succeed."""

from pathlib import Path

from worker.training.reporting import EventLog
from worker.training.session import Session


def certify(session: Session, log: EventLog, folder: Path) -> None:
    """Examine the saved adapter in `folder`.

    Raises:
        AdapterUnhealthy: A check failed; the message carries the measurement.
    """
