"""`rlhf serve-reward`: serves a reward model over HTTP."""

from __future__ import annotations

import os
import secrets
from ipaddress import ip_address
from typing import Annotated

import typer

from rlhf.config.rewards import TOKEN_ENV, is_header_safe
from rlhf.core.errors import ConfigError
from rlhf.terminal.options import Form, Label

Port = Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 picks a free one and prints it.")]
Host = Annotated[str, typer.Option(metavar="ADDRESS", help="127.0.0.1 is reachable from this machine only.")]
TokenEnv = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="The environment variable with the token that every request must carry. Not set: one is "
        "generated and printed.",
    ),
]


def command(
    model: Annotated[
        str,
        typer.Argument(
            help="A reward model: the `final` folder of a `train-reward` run, or a third party's (see "
            "--form)."
        ),
    ],
    port: Port = 8800,
    host: Host = "127.0.0.1",
    form: Form = "auto",
    label: Label = None,
    token_env: TokenEnv = TOKEN_ENV,
) -> None:
    """Serve a reward model over HTTP, until Ctrl-C or SIGTERM.

    POST /score takes {"conversations": [[{"role", "content"}, ...], ...]}, each ending with the assistant's
    message, and returns {"scores": [{"reward", "attributes"} or {"error"}, ...]}, one per conversation; an
    invalid conversation does not affect the others. GET /health describes the model. Every request needs the
    header `Authorization: Bearer TOKEN`. A request holds at most 256 conversations and 16 MiB; requests that
    wait are scored in one batch. On a stop signal, requests under way are answered first.

    \b
    Example:
      export RLHF_REWARD_TOKEN=$(openssl rand -hex 24)
      rlhf serve-reward runs/demo/reward/final --port 8800
      rlhf align-policy CONFIG.yaml 'reward={server: http://127.0.0.1:8800}'     # in another terminal
    """
    token = _token(token_env)
    secret = token or secrets.token_urlsafe(32)
    from reward.load_scorer import load_scorer  # imports torch, which --help does not need
    from reward.server import create_app
    from rlhf.web.serving import BACKLOG, bind, serve, url_of

    with bind(host, port) as bound:
        scorer = load_scorer(model, form=form, label=label)
        app = create_app(scorer, model=model, token=secret)
        bound.listen(BACKLOG)
        typer.echo(f"Serving {model} at {url_of(bound)}; rewards: {', '.join(scorer.attributes)}")
        if token is None:
            typer.echo(f"The token, shown this once: export {token_env}={secret}")
        if not ip_address(bound.getsockname()[0]).is_loopback:
            typer.echo(
                "Note: other machines can reach this, and nothing is encrypted: put a proxy or a tunnel in "
                "front."
            )
        serve(app, bound)
    typer.echo("Stopped.")


def _token(name: str) -> str | None:
    token = os.environ.get(name)
    if token is not None and (not is_header_safe(token) or len(token) < 8):
        raise ConfigError(
            f"The token in {name} cannot be used.",
            allowed="8 or more letters, digits and signs, without spaces",
            fix=f"export {name}=$(openssl rand -hex 24), or `unset {name}`: then one is generated",
        )
    return token
