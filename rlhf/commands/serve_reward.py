"""`rlhf serve-reward`: a reward model behind HTTP."""

from __future__ import annotations

import os
import secrets
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf.commands.options import Form, Label
from rlhf.config.rewards import TOKEN_ENV
from rlhf.core.errors import ConfigError

if TYPE_CHECKING:
    from reward.server import RewardServer

Port = Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 takes a free one, and says which.")]
Host = Annotated[str, typer.Option(metavar="ADDRESS", help="127.0.0.1 is reached from this machine alone.")]
TokenEnv = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="The environment variable with the token that every request must carry. Not set: one is made and printed.",
    ),
]


def command(
    model: Annotated[
        str,
        typer.Argument(
            help="A reward model: the `final` folder of a `train-reward` run, or another's (see --form)."
        ),
    ],
    port: Port = 8800,
    host: Host = "127.0.0.1",
    form: Form = "auto",
    label: Label = None,
    token_env: TokenEnv = TOKEN_ENV,
) -> None:
    """Serve a reward model over HTTP, until Ctrl-C.

    POST /score takes {"conversations": [[{"role", "content"}, ...], ...]}, each ending with the assistant's message, and gives
    {"scores": [{"reward", "attributes"} or {"error"}, ...]}, one for each: a conversation that cannot be scored spoils no other.
    GET /health says what is served. Every request carries the header `Authorization: Bearer TOKEN`. At most 256 conversations
    and 16 MiB at a time; one model call at a time, in the order requests came in.

    \b
    Example:
      export RLHF_REWARD_TOKEN=$(openssl rand -hex 24)
      rlhf serve-reward runs/demo/reward/final --port 8800
      rlhf align-policy CONFIG.yaml 'reward={server: http://127.0.0.1:8800}'     # in another terminal
    """
    token = _token(token_env)
    from reward.load_scorer import load_scorer  # torch loads only when the command runs
    from reward.server import RewardServer

    with _bound(RewardServer, host, port, model, token or secrets.token_urlsafe(32)) as server:
        server.scorer = load_scorer(model, form=form, label=label)
        server.server_activate()
        typer.echo(f"Serving {model} at {server.url}; rewards: {', '.join(server.scorer.attributes)}")
        if token is None:
            typer.echo(f"The token, shown this once: export {token_env}={server.token}")
        if not ip_address(server.server_address[0]).is_loopback:  # type: ignore[arg-type]
            typer.echo(
                "Note: other machines can reach this, and nothing is encrypted: put a proxy or a tunnel in front."
            )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("Stopped.")


def _token(name: str) -> str | None:
    token = os.environ.get(name)
    if token is not None and (
        not token.isascii() or not token.isprintable() or " " in token or len(token) < 8
    ):
        raise ConfigError(
            f"The token in {name} cannot be used.",
            allowed="8 or more letters, digits and signs, without spaces",
            fix=f"export {name}=$(openssl rand -hex 24), or `unset {name}`: then one is made",
        )
    return token


def _bound(kind: type[RewardServer], host: str, port: int, model: str, token: str) -> RewardServer:
    try:
        return kind((host, port), model, token)
    except OSError as error:
        raise ConfigError(
            f"No server can be started at {host}:{port}: {error.strerror}",
            allowed="an address of this machine, and a free port",
            fix="--port with another number, or 0 for a free one",
        ) from error
