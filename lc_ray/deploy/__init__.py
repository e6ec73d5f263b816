"""One file per platform.

    deploy(path)      serve the artifact there; returns a handle with `url`, `predict(rows)` and `delete()`
"""
