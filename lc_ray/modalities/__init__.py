"""One file per modality: how an input column is decoded, prepared, batched and encoded.

A modality file defines two classes:

    Modality(spec, source)            for rows
        .decode(value, errors)        a cell → a clean value; DataError says why not
        .prepare(values)              clean values → columns of variable-length lists, computed once per dataset
        .sizes(columns)               cost of each row, by which rows of like size are batched together
        .collate(columns)             those lists → padded tensors
        .save(folder)                 what is needed to do the same when serving
    Encoder                           for tensors
        Encoder.pretrained(spec, source)  /  Encoder.rebuild(config)
        .config, .width
        .forward(**tensors)           → hidden (batch, positions, width), mask (batch, positions)
"""
