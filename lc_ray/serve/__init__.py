"""An artifact behind an endpoint. A request's way, and what lies beside it:

    run, container, build    who starts an endpoint: `lc-ray serve`, a platform's image, Serve's own tools
    app, front               the application on Ray Serve, and HAProxy in front of it
    replica                  what each of its processes holds: the models, and the gRPC operations of grpc
    rollout, update          which versions are served, and how others take their place while requests go on

    observe                  gives each request a record, for access, predictions, metrics and tracing, which write in the background
    http                     keys (auth), rates (rate), limits on bodies and time, errors as JSON
    protocols/               parse what is asked, by fields and forms, and write the answer; openapi describes them all
    endpoint                 chooses the version, fetches what is named by URL (urls), decodes the rows
    batching                 runs rows of many requests together, those that grouping puts into a batch; resident keeps some models in memory
    language, generation     the same token by token, by own or vllm: grammar says which may come next, spelling what they say
    drift                    compares the last rows with those of training
"""
