"""A gateway: takes requests as OpenAI's API has them, lets a policy choose, and sends them to real servers.

The core knows no transport and no clock of its own: `config`, `pools`, `snapshot`, `breaker`, `prompt_lengths`, `core`,
`intake`, `events`, `assembly`, `request_log`. `server` and `upstream` are HTTP; `serve` runs all of it.
"""
