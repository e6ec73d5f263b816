"""One file per task: head, loss, metrics and decoding.

A task file defines `Task`:

    Task.objective                    metric that is maximised
    Task.clean(value)                 a raw target cell → a clean one; DataError says why not
    Task.fit(targets) -> Task         from the training rows' clean targets
    Task(**task.config)               from an artifact
    .encode(value)                    a clean target → a number; DataError says why not
    .head(width)                      the layer after the fused encoders
    .loss(outputs, targets)           mean over the batch
    .distill(outputs, teacher, temperature)
    .metrics(outputs, targets)        {name: value} over all rows
    .decode(output)                   one row's output → a JSON answer
"""
