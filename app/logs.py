"""Log lines of all processes: one format, on standard error."""

import logging

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def configure(level: str) -> None:
    """Send log records of `level` and above to standard error."""
    logging.basicConfig(level=level.upper(), format=_FORMAT, force=True)
    # Alembic announces its context at every start; its warnings still show.
    logging.getLogger("alembic").setLevel(logging.WARNING)
