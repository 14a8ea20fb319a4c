"""Learning rates as a pure function of the step, so that no state is needed to resume."""

import math

from factory.recipe import Schedule


def total_steps(schedule: Schedule, steps_per_epoch: int) -> int:
    """Return the optimizer steps of the whole training."""
    return schedule.steps or (schedule.epochs or 0) * steps_per_epoch


def learning_rate(base: float, schedule: Schedule, step: int, total: int, per_epoch: int) -> float:
    """Return the learning rate of one optimizer step.

    Args:
        base: the recipe's `optimizer.lr`.
        schedule: the shape of the schedule. A linear warm-up comes before every shape.
        step: steps done before this one, from 0.
        total: steps of the whole training.
        per_epoch: steps of one pass over the data.
    """
    warmup = round(schedule.warmup * total)
    if step < warmup:
        return base * (step + 1) / warmup
    if schedule.name == "constant":
        return base
    if schedule.name == "steps":
        passed = sum(step >= epoch * per_epoch for epoch in schedule.milestones)
        return base * 0.1**passed
    if schedule.name == "warm_restarts":
        # SGDR (Loshchilov and Hutter 2017, equation 5); T_i = restart_steps * restart_mult^i
        position, length = step - warmup, schedule.restart_steps
        while schedule.restart_mult > 1 and position >= length:
            position, length = position - length, length * schedule.restart_mult
        phase = position % length / length
    else:
        phase = (step - warmup) / max(total - warmup, 1)
    low = schedule.final_lr
    return base * (low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * phase)))
