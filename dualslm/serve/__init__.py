"""The server: OpenAI's HTTP interface to a model that hears (ours).

`service` answers talks, `wire` knows OpenAI's JSON, `gate` keeps limits and counts, `app` has the routes, `run` starts
and stops the process.
"""
