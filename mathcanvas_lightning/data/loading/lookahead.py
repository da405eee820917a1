"""Tells each worker which rows of a row group it will need, so that it reads the group once."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from mathcanvas_lightning.data.loading.pack_dataset import PackTask, RowGroupKey

MAX_SAMPLES_AHEAD = 6_000
"""Samples of a rank that are looked at in advance: the plan mixes rows of about this many."""


def with_wanted_rows(tasks: Iterator[PackTask], num_workers: int) -> Iterator[PackTask]:
    """Adds to each pack the rows that its worker will need soon.

    The DataLoader deals packs to its workers in turn. If it does not, only reading gets slower.

    Args:
        tasks: Packs of a rank, in order.
        num_workers: Number of worker processes; 0 counts as 1.

    Yields:
        The same packs.
    """
    num_workers = max(1, num_workers)
    ahead: deque[PackTask] = deque()
    num_samples = first = last = 0
    needed: list[dict[RowGroupKey, list[int]]] = [{} for _ in range(num_workers)]
    remaining = iter(tasks)
    while True:
        while num_samples <= MAX_SAMPLES_AHEAD and (task := next(remaining, None)) is not None:
            ahead.append(task)
            num_samples += len(task.samples)
            for ref in task.samples:
                needed[last % num_workers].setdefault(ref.group, []).append(ref.row)
            last += 1
        if not ahead:
            return
        task = ahead.popleft()
        own = needed[first % num_workers]
        yield replace(task, wanted={ref.group: frozenset(own[ref.group]) for ref in task.samples})
        for ref in task.samples:
            own[ref.group].remove(ref.row)
            if not own[ref.group]:
                del own[ref.group]
        num_samples -= len(task.samples)
        first += 1
