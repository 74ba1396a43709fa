"""The server: OpenAI's HTTP interface to a model that hears (ours).

`app` has the routes and `explain_routes` those of the page; `service` encodes prompts and streams replies;
`openai_schema` and `openai_reply` are OpenAI's JSON, `tools` what may be called, `tool_calls` what a reply calls. What
keeps a server up stands around them: `connections` and `middleware` let requests in, by `hosts` and by the keys of
`caller`; `json_body` and `limits` bound what they hold, `fairness` shares what there is. `errors` and `metrics` say how
it went; `run` starts and stops the process.
"""
