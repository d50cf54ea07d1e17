"""All mutants, in the order in which they are examined."""

from bench.mutants.faults import (
    checkpoints,
    commit,
    fence,
    leases,
    leftovers,
    options,
    processes,
    queue,
    records,
    requests,
    resume,
    rules,
    settling,
    streams,
    training,
)

ALL = (
    *fence.MUTANTS,
    *leases.MUTANTS,
    *settling.MUTANTS,
    *rules.MUTANTS,
    *requests.MUTANTS,
    *queue.MUTANTS,
    *records.MUTANTS,
    *leftovers.MUTANTS,
    *streams.MUTANTS,
    *resume.MUTANTS,
    *checkpoints.MUTANTS,
    *commit.MUTANTS,
    *training.MUTANTS,
    *options.MUTANTS,
    *processes.MUTANTS,
)
