"""One file per wire protocol.

    PUBLIC            paths that need no API key
    ERRORS            by path, or its first part: what becomes of an error's content, if the protocol wants it otherwise; may be left out
    routes(models)    Starlette routes that call `models.choose(name).predict(instances)`
"""
