"""One file per wire protocol.

    PUBLIC            paths that need no API key; or public(models), where settings say which
    UNLIMITED         paths that no rate limit counts; may be left out
    SETTINGS          environment variables that it needs, read once by each replica; may be left out
    ERRORS            by a path, and those below it: what becomes of an error's content, if the protocol wants it otherwise; may be left out
    ERROR             JSON Schema of what that is, if it has ERRORS
    routes(models)    Starlette routes that call `models.choose(name).predict(instances)`
    describe(models)  an `openapi.Operation` for each of them, for the models served now
"""
