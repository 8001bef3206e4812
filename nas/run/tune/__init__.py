"""The engine on Ray Tune: many workers on one machine or on a cluster. The only code that imports ray.

Each piece of work of a strategy, "bring trial i to budget b", is one Tune trial, given by one searcher. Tune does
what it is good at: resources, placement, reuse of workers, retries, callbacks. What it is not trusted with is the
truth: the driver writes each measurement to the record before anything else hears of it, and a resumed search
starts from the record, not from ``Tuner.restore``. Nor does Tune keep checkpoints: a trial goes on from its
objective's, in the run's folder, which all workers must share.

Who wants Tune's own schedulers, such as population-based training, gets a `trainable`.
"""

from nas.run.tune.cluster import Cluster, check_cores, session
from nas.run.tune.jobs import finals, meter, scores, trainings
from nas.run.tune.search import execute
from nas.run.tune.trainable import trainable

__all__ = [
    "Cluster",
    "check_cores",
    "execute",
    "finals",
    "meter",
    "scores",
    "session",
    "trainable",
    "trainings",
]
