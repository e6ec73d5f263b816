"""One file per modality: how an input column is decoded, prepared, batched and encoded.

A modality file defines two classes:

    Modality(spec, source)            for rows; `source` is the base model's folder or name, or an artifact's processor folder
        .TYPE                         Arrow type of a clean value
        .SCHEMA                       JSON Schema of a value in a request
        .decode(value, errors, folder)  a cell → a clean value; DataError says why not. `folder` is the data file's, in which
                                      a path in a cell is looked for; without it, in a request, no file is ever opened
        .prepare(values)              clean values → columns of lists, computed once per dataset; None stands for a missing one
        .windows(texts)               of text alone: the same for texts that are learned whole, of which a long one is several rows
        .sizes(columns)               cost of each row, by which rows of like size are batched together
        .collate(columns)             those lists → padded tensors
        .augment(tensors, random)     collated training tensors, varied
        .show(parts)                  one row's prepared parts → what a request may carry, as JSON
        .measure(parts)               one row's prepared parts → numbers and categories by which rows are compared with those of training
        .save(folder)                 what is needed to do the same when serving
        .MEDIA                        "image" or "audio", if a value is the bytes of a file, of whose size `decode` tells `_media.spend` first
        .example                      a value that may stand for any, to warm up with
    Encoder                           for tensors
        Encoder.pretrained(spec, source)  /  Encoder.rebuild(config)
        .config, .width
        .forward(**tensors)           → hidden (batch, positions, width), mask (batch, positions)
"""
