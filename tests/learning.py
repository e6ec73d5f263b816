"""Tiny models that learn in seconds, for tests of tasks: as they are, and again after they were pruned."""

from random import Random

import pytest
import torch
from pretend import on_a_gpu

from lc_ray.models import load
from lc_ray.models.batches import TARGET, collate, feed
from lc_ray.models.shapes import difference
from lc_ray.prune.structured import Pruner


def train(model, task, rows, columns, steps, rate, size=16, drop=0.0):
    """The losses of so many steps of batches drawn at random; the model is left in evaluation mode."""
    optimizer = torch.optim.AdamW(model.train().parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    chooser, random, losses = Random(0), torch.Generator().manual_seed(0), []
    for _ in range(steps):
        chosen = chooser.sample(range(len(rows[TARGET])), size)
        batch, targets = feed({k: [v[i] for i in chosen] for k, v in rows.items()}, columns, task, random, True, drop)
        loss = task.loss(model(batch), targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    on_a_gpu(model, task, {k: v[:4] for k, v in rows.items()}, columns)
    return losses


def sizes_fed(predictor, rows, name, count):
    """How long a tensor is that the task gives to the engine, for each of the first rows alone."""
    found = []

    def run(inputs):
        found.extend(tensor.shape[1] for key, tensor in inputs.items() if key == name)
        return predictor.engine(inputs)

    for i in range(count):
        predictor.task.answer(run, collate({k: v[i : i + 1] for k, v in rows.items()}, predictor.columns))
    return found


def measured(predictor, rows):
    """The task's metrics."""
    return predictor.task.metrics(predictor.scores(rows), [predictor.task.encode(t) for t in rows[TARGET]])


def recovered(trained, fraction, steps, rate=2e-3, rows=32, training=False, labels=False):
    """A trained model without a fraction of its parameters, once it has learned from what it was, and by labels if asked for.

    Returns:
        The model, in evaluation mode; units by layer; and what is changed of its shapes.
    """
    model, teacher, task = load.open_model(trained.artifact).requires_grad_(True), load.open_model(trained.artifact), trained.task
    batch, targets = feed({k: v[:rows] for k, v in trained.rows.items()}, trained.columns, task, training=training)
    pruner = Pruner(model, {k: v[:2] for k, v in batch.items()}, model.keep)
    task.loss(model(batch), targets).backward()
    pruner.observe()
    units = pruner.remove(fraction)
    optimizer = torch.optim.AdamW(model.train().parameters(), rate)
    for _ in range(steps):
        with torch.no_grad():
            soft = teacher(batch)
        outputs = model(batch)
        loss = task.distill(outputs, soft, targets, 2.0) + (task.loss(outputs, targets) if labels else 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert task.distill(soft, soft, targets, 2.0).item() == pytest.approx(0, abs=1e-4)
    with torch.device("meta"):
        return model.eval(), units, difference(model, load.rebuild(trained.artifact.manifest))
