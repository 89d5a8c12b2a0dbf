"""One op of a watched step, and the sizes that it has at one number of samples."""

from dataclasses import dataclass, field

SIZES = (
    *("flops", "read_bytes", "written_bytes", "saved_bytes", "unscaled_saved_bytes"),
    *("backward_flops", "backward_read_bytes", "backward_written_bytes"),
)
"""What is counted in a whole batch, and becomes a size per sample."""


@dataclass(frozen=True, slots=True)
class Product:
    """`batch` products of [rows x inner] by [inner x columns], as an op has them."""

    batch: int
    rows: int
    columns: int
    inner: int

    @property
    def flops(self) -> int:
        """A multiplication and an addition each."""
        return 2 * self.batch * self.rows * self.columns * self.inner


@dataclass(slots=True)
class Event:
    """One op as it ran: where, what, and how large.

    `block` is the block of the model that it ran in and `after` the number of blocks begun before;
    `heads` and what follows are of attention, `steps` of a scan; `cut` as in `spec.Op`. `weights`
    are the parameters that it read, with their bytes.
    """

    path: str
    block: str
    after: int
    name: str
    kind: str
    product: Product | None = None
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIZES, 0))
    weights: dict[str, int] = field(default_factory=dict)
    num_kernels: int = 1
    num_backward_kernels: int = 0
    attention: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    cut: str = ""
    experts: bool = False
    positions: int = 0

    def add(self, size: str, amount: int) -> None:
        """Count `amount` more of a size."""
        self.sizes[size] += amount
