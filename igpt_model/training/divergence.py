"""When training is no longer sound: a loss that is not finite, or that has risen and stays high."""

import math

from igpt_model.errors import UserError

PATIENCE = 5  # records in a row for which a spiking loss is watched before training stops


class TrainingDiverged(UserError):  # noqa: N818 (it names what happened, as StopIteration does)
    """The loss became infinite or NaN, or rose and stayed high; the last good checkpoint is still there."""


class LossWatch:
    """Checks every record of the training loss.

    `first` is the loss at which training starts; `spike` the share of its decrease since then that may be lost again
    (0: any, so that only finiteness is checked).
    """

    def __init__(self, first: float = 0.0, spike: float = 0.0) -> None:
        self.first, self.spike = first, spike
        self.lowest, self.bad_records = math.inf, 0

    @property
    def reliable(self) -> bool:
        """Whether the weights may be saved: a loss that has risen is watched for a while first."""
        return self.bad_records == 0

    def check(self, step: int, loss: float, norm: float, last: bool, good: int | None) -> None:
        """Take in the loss and the largest gradient norm since the last record.

        `last` says that no record follows; `good` is the step of the newest checkpoint, for the message.

        Raises
        ------
        TrainingDiverged
            The loss or the gradient is not finite, or the loss has risen and stays high.
        """
        advice = f"the last good checkpoint is of step {good}; start again in another folder with a lower lr"
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"The loss or its gradient is not finite at step {step} (loss {loss}, gradient norm {norm}): {advice}."
            )
        self.lowest = min(self.lowest, loss)
        limit = self.lowest + self.spike * (self.first - self.lowest)
        # early on, before there is progress to lose, worse than guessing by half counts
        learned = self.first - self.lowest > 0.05
        risen = self.spike > 0 and loss > (limit if learned else 1.5 * self.first)
        self.bad_records = self.bad_records + 1 if risen else 0
        if self.bad_records >= PATIENCE or (self.bad_records and last):
            raise TrainingDiverged(
                f"The loss was {self.lowest:.3f} at best, is {loss:.3f} at step {step} and stays high: {advice}."
            )
