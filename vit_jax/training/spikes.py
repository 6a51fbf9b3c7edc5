"""Loss spikes: noticed a few steps later, by the same rule at the same step on all processes.

A roll-back undoes updates, not steps: the weights return to a checkpoint, and the run continues
with the next batch, step and learning rate. So a batch stays a function of (seed, step), and a
resume needs only the record of a checkpoint.
"""

from __future__ import annotations

import collections
import math
import statistics
from typing import NamedTuple

import jax

from vit_jax.config import ConfigDict
from vit_jax.models.fingerprints import RolledBack, SpikeRecord

#: Steps in flight before a value of the first of them is read, so that no device waits.
LOOK_BACK = 8
#: The newest losses, whose median is compared: a single bad batch is no spike.
NEWEST = 8


class Rule(NamedTuple):
    """A spike is a median of the newest losses above `factor` times that of the `window` before.

    limit: roll-backs of a run.
    """

    factor: float
    window: int
    limit: int

    def __str__(self) -> str:
        return (
            f"when the loss exceeds {self.factor:g} x its median of {self.window} steps, at most "
            f"{self.limit} times"
        )


def rule_of(config: ConfigDict) -> Rule | None:
    """The rule of `config.roll_back`; None: off."""
    values = config.roll_back
    if values.factor is None:
        return None
    return Rule(values.factor, values.window, values.limit)


class Spike(NamedTuple):
    """loss: the median of the newest ones; `math.inf` if they are not finite. usual: before."""

    loss: float
    usual: float


class Spikes:
    """The losses of the last steps, and where a roll-back leads to.

    anchors: steps of checkpoints that are old enough, or will be; only those that do not depend on
    when a run was interrupted. ranges: the roll-backs so far.

    Args:
      rule: None: nothing is noticed.
      found: the record in the checkpoint that the run resumes from, if any.
    """

    def __init__(self, rule: Rule | None, found: SpikeRecord | None = None):
        self.rule = rule
        self.losses: collections.deque[float | jax.Array] = collections.deque()
        self.anchors: list[int] = []
        self.ranges: list[RolledBack] = []
        if rule and found:
            self.losses.extend(math.inf if x is None else x for x in found["losses"])
            self.anchors, self.ranges = list(found["anchors"]), list(found["ranges"])

    def note(self, loss: jax.Array) -> Spike | None:
        """Adds the loss of a step; whether those up to `LOOK_BACK` steps before it have spiked."""
        rule, losses = self.rule, self.losses
        if rule is None:
            return None
        loss.copy_to_host_async()
        losses.append(loss)
        while len(losses) > rule.window + NEWEST + LOOK_BACK:
            losses.popleft()
        if len(losses) > LOOK_BACK:
            losses[-1 - LOOK_BACK] = read(losses[-1 - LOOK_BACK])
        if len(losses) < rule.window + NEWEST + LOOK_BACK:
            return None
        known = [read(x) for x in list(losses)[:-LOOK_BACK]]
        newest = statistics.median_low(known[-NEWEST:])
        usual = statistics.median_low(known[:-NEWEST])
        is_above = newest > usual + (rule.factor - 1) * abs(usual)  # a loss may be negative
        return Spike(newest, usual) if is_above else None

    def anchor(self, step: int) -> None:
        """Notes that a checkpoint of `step` is saved, to which a roll-back may lead."""
        if self.rule is not None:
            self.anchors = [*(s for s in self.anchors if s < step), step]
            target = self.target(step)
            self.anchors = [s for s in self.anchors if target is None or s >= target]

    def target(self, step: int) -> int | None:
        """The checkpoint for a spike noticed after `step`: the newest before its losses."""
        old = [s for s in self.anchors if s <= step - LOOK_BACK - NEWEST]
        return max(old, default=None)

    def take_back(self, step: int, target: int, spike: Spike) -> None:
        """Notes that the updates after `target` are taken back, to be saved as `step`.

        The losses of the spike and after it are forgotten, those before it still count.
        """
        loss = spike.loss if math.isfinite(spike.loss) else None
        self.ranges.append({"from": target + 1, "to": step, "loss": loss, "usual": spike.usual})
        self.anchors = [s for s in self.anchors if s <= target]
        self.anchor(step)
        for _ in range(LOOK_BACK + NEWEST):
            self.losses.pop()

    def was_taken_back(self, step: int) -> bool:
        """Whether the update of a step has been taken back."""
        return any(taken["from"] <= step <= taken["to"] for taken in self.ranges)

    def record(self) -> SpikeRecord | None:
        """The record for a checkpoint."""
        if self.rule is None:
            return None
        losses = [x if math.isfinite(x) else None for x in map(read, self.losses)]
        return {"losses": losses, "anchors": self.anchors, "ranges": self.ranges}


def read(loss: float | jax.Array) -> float:
    """The value of a loss; `math.inf` if it is not finite."""
    value = float(loss)
    return value if math.isfinite(value) else math.inf
