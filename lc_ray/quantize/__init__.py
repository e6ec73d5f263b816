"""One file per scheme. Each makes the engine that runs a model when it is served, and loads it again.

    build(model, batches, folder)     write the engine's files into `folder`; returns what the manifest records
    load(found, threads, gpu)         -> run(batch of tensors) -> outputs, a numpy array; `run.decoder()`, if there is one, goes on with
                                      sequences of a causal language model, see tasks/_decoder.py; on a GPU if asked to, and if it can
"""
