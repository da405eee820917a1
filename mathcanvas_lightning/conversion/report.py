"""What a conversion has done."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mathcanvas_lightning.common.paths import join_path
from mathcanvas_lightning.conversion.output.manifest import REJECTS_FILE
from mathcanvas_lightning.conversion.rejection import IMAGE_REASONS


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionReport:
    """Counts of a finished conversion."""

    output: str
    """Path or URL of the output folder."""
    num_records: int
    """Number of input records: rows plus rejects."""
    rows: Mapping[str, int]
    """Split name ("" without splits) -> number of rows."""
    rejects: Mapping[str, int]
    """Reason code -> number of rejected records."""
    num_resumed: int
    """Number of rows that an earlier run had already finished."""
    max_reject_fraction: float
    """The largest fraction of rejects with which the conversion still succeeds."""
    max_image_reject_fraction: float
    """The largest fraction of rejects for images with which the conversion still succeeds."""
    seconds: float
    """Wall time, in seconds."""
    renamed_fields: Mapping[str, str] = field(default_factory=dict)
    """Field of the records -> extra column, for fields named like a column of the format."""
    num_oriented: int = 0
    """Number of images with an EXIF orientation in the rows that this run converted."""
    orientation_applied: bool = False
    """Whether these images were turned."""
    part: str | None = None
    """The part that was converted, such as 3/8; None for a whole conversion."""

    @property
    def num_rows(self) -> int:
        """Number of rows in all splits."""
        return sum(self.rows.values())

    @property
    def num_rejects(self) -> int:
        """Number of rejected records, including filtered ones."""
        return sum(self.rejects.values())

    @property
    def problem(self) -> str | None:
        """Why the conversion failed, or None if it succeeded."""
        if self.part is not None:  # decided by the merge
            return None
        if self.num_rows == 0:
            return f"no row was kept from {self.num_records} records; {self._remedy}"
        fraction = self.num_rejects / self.num_records
        if fraction > self.max_reject_fraction:
            return (
                f"{fraction:.1%} of the records were rejected, more than --max_reject_fraction "
                f"{self.max_reject_fraction:g} allows; {self._remedy}"
            )
        fraction = sum(self.rejects.get(reason, 0) for reason in IMAGE_REASONS) / self.num_records
        if fraction > self.max_image_reject_fraction:
            return (
                f"{fraction:.1%} of the records were rejected for their images, more than "
                f"--max_image_reject_fraction {self.max_image_reject_fraction:g} allows; "
                f"{self._remedy}"
            )
        return None

    @property
    def _remedy(self) -> str:
        """The most frequent reason, and where all are listed."""
        place = f"see {join_path(self.output, REJECTS_FILE)}"
        if not self.rejects:
            return place
        reason = max(self.rejects, key=lambda reason: self.rejects[reason])
        hint = "; check --image_dir" if reason in IMAGE_REASONS else ""
        return f"most for {reason}{hint}; {place}"
