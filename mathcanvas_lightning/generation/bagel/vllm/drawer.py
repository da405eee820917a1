"""Draws for many problems with few contexts: those of a problem are kept, or read again."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from PIL import Image

from mathcanvas_lightning.generation.bagel.contexts import Context, contexts_of
from mathcanvas_lightning.generation.bagel.image_steps import Drawing
from mathcanvas_lightning.generation.bagel.rollout.state import Rollout
from mathcanvas_lightning.generation.bagel.workshop import Workshop


@dataclass(slots=True, kw_only=True)
class _Board:
    """The contexts of a problem."""

    slot: int
    contexts: list[Context]
    rollout: Rollout
    num_read: int = 0
    """Number of items of the rollout that the contexts contain."""
    is_idle: bool = False
    """Whether its contexts may be dropped."""
    drawing: Drawing | None = None


class Drawer:
    """Draws for problems; all drawings in progress advance together.

    The contexts of a problem stay in the cache for its next drawing, so that only new items are
    prefilled then. If another problem needs the room, those of the problem that has not drawn for
    the longest time are dropped, and read again later.

    Args:
        workshop: The model and its cache.
    """

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self._free = list(range(workshop.num_problems))
        self._boards: dict[str, _Board] = {}
        """Uid -> contexts, the least recently used first."""
        self.num_rebuilt = 0
        """How often the contexts of a problem were dropped."""

    @property
    def is_busy(self) -> bool:
        """Whether a drawing is in progress."""
        return not all(board.is_idle for board in self._boards.values())

    def begin(self, rollouts: Sequence[Rollout]) -> None:
        """Starts the drawings that there is room for.

        Args:
            rollouts: Problems that need a drawing, the longest waiting first. Those whose drawing
                is in progress are skipped.
        """
        drawing = {uid for uid, board in self._boards.items() if not board.is_idle}
        waiting = [one for one in rollouts if one.problem.uid not in drawing]
        # First those with contexts, which must not be dropped for others in the same call.
        waiting.sort(key=lambda one: one.problem.uid not in self._boards)
        boards = [board for one in waiting if (board := self._take(one)) is not None]
        entries = []
        for board in boards:
            entries += contexts_of(board.rollout.items[board.num_read :], board.contexts)
            board.num_read = len(board.rollout.items)
        self.workshop.prefiller.prefill([entry for entry in entries if entry[1]])
        for board in boards:
            rollout = board.rollout
            board.drawing = self.workshop.painter.begin(
                rollout.config.drawing, board.contexts, rollout.size_px, rollout.noise_key
            )

    def step(self) -> list[tuple[Rollout, Image.Image | None]]:
        """Advances all drawings by one step.

        Returns:
            Problems whose drawings are finished, with the picture; None if its values are NaN.
        """
        pairs = [(b, b.drawing) for b in self._boards.values() if b.drawing is not None]
        if not pairs:
            return []
        painter = self.workshop.painter
        painter.step([drawing for _, drawing in pairs])
        done = [(board, drawing) for board, drawing in pairs if drawing.is_done]
        pictures = painter.paint([drawing for _, drawing in done])
        for board, _ in done:
            board.drawing, board.is_idle = None, True
        return [(board.rollout, one) for (board, _), one in zip(done, pictures, strict=True)]

    def release(self, uids: Collection[str]) -> None:
        """Frees the contexts of problems, and drops their drawings."""
        for uid in uids:
            board = self._boards.pop(uid, None)
            if board is not None:
                self._free.append(board.slot)

    def _take(self, rollout: Rollout) -> _Board | None:
        """The contexts of a problem, as the most recently used; None if all others draw."""
        uid = rollout.problem.uid
        board = self._boards.pop(uid, None)
        if board is None:
            board = self._new_board(rollout)
        if board is not None:
            board.is_idle = False
            self._boards[uid] = board
        return board

    def _new_board(self, rollout: Rollout) -> _Board | None:
        if not self._free:
            idle = (uid for uid, board in self._boards.items() if board.is_idle)
            oldest = next(idle, None)
            if oldest is None:
                return None
            self.release([oldest])
            self.num_rebuilt += 1
        slot = self._free.pop()
        rows = self.workshop.rows(slot, rollout.config.drawing.num_contexts)
        return _Board(slot=slot, contexts=[Context(row=row) for row in rows], rollout=rollout)
