"""One file per wire protocol.

    PUBLIC            paths that need no API key
    ERRORS            of paths whose errors have a form of their own, which it makes of an `HttpError`; may be missing
    routes(models)    Starlette routes that call `models.choose(name).predict(instances)`
"""
