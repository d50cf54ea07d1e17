"""The product's fork server with the fast trainer in place of the real one."""

from worker import forkserver

TRAINER = "tests.chaos.harness.fast_trainer"

if __name__ == "__main__":
    forkserver.ENTRIES.clear()
    forkserver.ENTRIES["trainer"] = TRAINER
    forkserver.main()
