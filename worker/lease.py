"""Keeping a job's lease: renewed in a thread of its own, whatever the supervisor is busy with."""

import logging
import threading
import time

from app.db.engine import Database
from app.domain.errors import Fenced, Unavailable
from app.domain.jobs import Desired
from app.services import runs
from app.services.runs import Claimed
from app.settings import Settings

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5


class Lease:
    """Renews one attempt's lease from `start` to `stop`, and knows what is asked of the job."""

    def __init__(self, db: Database, settings: Settings, run: Claimed) -> None:
        self._db = db
        self._settings = settings
        self._run = run
        self._desired = Desired.RUN
        self._lost: Fenced | None = None
        self._renewed_at = time.monotonic()
        self._now = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {run.job_id}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._now.set()
        self._thread.join(timeout=self._settings.heartbeat_seconds)

    def renew_now(self) -> None:
        """Do not wait for the next heartbeat; something was asked of the job."""
        self._now.set()

    def desired(self) -> Desired:
        """Return what is asked of the job, as of the last renewal.

        Raises:
            Fenced: The job belongs to another attempt now.
            Unavailable: The database has been away for longer than a job may go on without it.
        """
        if self._lost is not None:
            raise self._lost
        away_seconds = time.monotonic() - self._renewed_at
        if away_seconds > self._settings.database_outage_seconds:
            raise Unavailable(f"the database has been away for {away_seconds:.0f} s")
        return self._desired

    def confirm(self) -> None:
        """Renew first if the lease may have ended, as after a stop of this process or an outage.

        Whoever writes asks this before: the fence would refuse the write too, but only once the job
        has a new owner.

        Raises:
            Fenced: The job belongs to another attempt now.
            Unavailable: The database is away.
        """
        if time.monotonic() - self._renewed_at > self._settings.lease_seconds:
            self._renew()
            if time.monotonic() - self._renewed_at > self._settings.lease_seconds:
                raise self._lost or Unavailable("the lease could not be renewed")
        self.desired()

    def _keep(self) -> None:
        wait_seconds = 0.0
        while not self._stopped.is_set():
            self._now.wait(wait_seconds)
            # Cleared before the renewal: what is asked during it causes another one.
            self._now.clear()
            if self._stopped.is_set():
                return
            wait_seconds = self._renew()

    def _renew(self) -> float:
        """Renew once and return the seconds until the next time."""
        began = time.monotonic()  # the lease counts from before the database saw the renewal
        try:
            self._desired = runs.renew(self._db, self._settings, self._run)
        except Unavailable as error:
            _log.warning("job %s goes on without the database: %s", self._run.job_id, error)
            return _RETRY_SECONDS
        except Fenced as error:
            self._lost = error
            self._stopped.set()
            return 0.0
        except Exception:  # noqa: BLE001 (an edge: without this thread the lease would end)
            _log.exception("renewing the lease of %s failed; trying again", self._run.job_id)
            return _RETRY_SECONDS
        self._renewed_at = began
        return self._settings.heartbeat_seconds
