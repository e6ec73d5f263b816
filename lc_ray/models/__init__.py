"""Pretrained weights in, one `FusionModel` out, whatever the columns; and the shapes that pruning gave it.

    load      finds a base model, makes the trainable one, writes it as an artifact, and reads it back
    fusion    an encoder per column, joined, and a head
    batches   rows → tensors
    shapes    what pruning changed
    cache     keys and values of running sequences; prefixes has those of sequences that ended
"""
