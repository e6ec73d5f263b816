"""One file per wire protocol.

    PUBLIC            paths that need no API key
    routes(endpoint)  Starlette routes that call `endpoint.predict(instances)`
"""
