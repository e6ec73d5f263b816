"""One file per task: head, loss, metrics and decoding.

A task file defines `Task`, a subclass of `_task.Task`, whose methods are called in this order:

    preparing   Task.options(section), Task.reader(options, columns), Task.placed(cell, others), Task.read(cell, folder, reader),
                Task.check(target, values),
                Task.fit(targets, options, columns), .bind(columns), .encode(target)
    training    .collate(encoded), .teach(inputs, targets, random, training), .loss(outputs, targets), .distill(...)
    measuring   .collate, .teach, .score(run, inputs, targets), .metrics(scores, encoded)
    answering   .answer(run, inputs), .decode(output, parts); .schema() says what the latter gives
    from an artifact   Task(**task.config).bind(columns)

A task that is more than a head on fused encoders defines `Model` too, a torch module:

    Model.pretrained(spec, inputs, sources, task)   `spec` is the job's model section; `sources` has each input column's base folder
    Model.rebuild(config, task)                     with weights yet to be loaded
    .config                       what `rebuild` needs, as JSON
    .keep                         modules that are never pruned
    .stages(batch)                only of a model that answers in stages: a taught batch as each of them takes it
    .remember(batch, past)        only of a model that goes on token by token: outputs, and keys and values to be given as `past` next time
    .followed(batch)              only of a model whose forward loses its layers' trace, for pruning: tensors that all of them lead to
    .forward(batch)               tensors named `column.tensor`, those that `teach` added included → one tensor (batch, ...)
"""
