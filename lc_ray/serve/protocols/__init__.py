"""One file per wire protocol.

    PUBLIC            paths that need no API key
    routes(models)    Starlette routes that call `models.choose(name).predict(instances)`
"""
