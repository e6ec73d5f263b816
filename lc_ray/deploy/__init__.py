"""One file per platform.

    Settings                       what `--set` and `DeployModel(...)` may say, a section
    calls(artifact, settings)      what `deploy` calls there, in order; it calls nothing itself
    deploy(artifact, settings)     serve the artifact there, or a new version of it; returns a handle with `url`, `predict(rows)` and `delete()`
    delete(artifact, settings)     leave nothing there that `deploy` has made, as the handle's `delete()` does
"""
