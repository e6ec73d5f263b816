"""One file per task: head, loss, metrics and decoding.

A task file defines `Task`:

    Task.TYPE                         Arrow type of a clean target
    Task.objective                    metric that is maximised
    Task.POSITIONS                    True if every position of the input is labelled, not the row
    Task.clean(value)                 a raw target cell → a clean one; DataError says why not
    Task.fit(targets, spec) -> Task   from the training rows' clean targets and the job's task section
    Task(**task.config)               from an artifact
    .encode(value)                    a clean target → a number or numbers; DataError says why not
    .collate(encoded)                 those of a batch → a tensor
    .head(width)                      the layer after the fused encoders
    .loss(outputs, targets)           mean over the batch
    .distill(outputs, teacher, targets, temperature)
    .metrics(outputs, encoded)        {name: value} over all rows; both are lists with an item per row
    .decode(output, parts)            one row's output, and its prepared parts by column → a JSON answer, the gist of it first
    .mistake(answer, target)          None if a clean target is met, else how sure of its error the answer is, in [0, 1]
"""
