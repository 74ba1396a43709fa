"""The server: OpenAI's HTTP interface to a model that hears (ours).

`app` has the routes and `explain_routes` those of the page; `service` encodes prompts and streams replies;
`openai_schema` is OpenAI's JSON; `limits`, `middleware`, `errors` and `metrics` stand around them; `run` starts and
stops the process.
"""
